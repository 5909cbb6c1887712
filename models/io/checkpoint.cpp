#include "models/io/checkpoint.h"

#include <algorithm>
#include <charconv>
#include <functional>
#include <memory>
#include <vector>

#include "core/error.h"
#include "core/log.h"
#include "models/io/atomic_file.h"
#include "models/io/json.h"
#include "models/io/mapped_file.h"

namespace ergon::io {
namespace fs = std::filesystem;
namespace {

constexpr std::string_view kPrefix = "step-";
constexpr const char* kModel = "model.safetensors";
constexpr const char* kConfig = "config.json";
constexpr const char* kOptimizer = "optimizer.safetensors";
constexpr const char* kTrainerState = "trainer_state.json";
constexpr const char* kManifest = "manifest.json";

std::string folder_name(std::int64_t step) { return fmt::format("{}{:08}", kPrefix, step); }

// The step of a name that folder_name gives; nothing for other names.
std::optional<std::int64_t> step_of(const std::string& name) {
  if (!name.starts_with(kPrefix)) return std::nullopt;
  std::int64_t step = -1;
  const char* end = name.data() + name.size();
  const auto [stop, error] = std::from_chars(name.data() + kPrefix.size(), end, step);
  if (error != std::errc() || stop != end || step < 0 || folder_name(step) != name) return std::nullopt;
  return step;
}

// Steps of the checkpoints in `root`, damaged ones included, highest first.
std::vector<std::int64_t> steps_in(const fs::path& root) {
  std::vector<std::int64_t> steps;
  std::error_code ignored;
  if (!fs::exists(root, ignored)) return steps;
  for (const fs::path& path : list_folder(root)) {
    const std::optional<std::int64_t> step = step_of(path.filename().string());
    if (step && fs::is_directory(path, ignored)) steps.push_back(*step);
  }
  std::sort(steps.begin(), steps.end(), std::greater<>());
  return steps;
}

void prune(const fs::path& root, std::int64_t newest, int keep_last) {
  if (keep_last <= 0) return;
  int kept = 0;
  for (const std::int64_t step : steps_in(root)) {
    if (step <= newest && ++kept > keep_last) remove_folder(root / folder_name(step));
  }
}

// Every file of the manifest, mapped, with the size and the checksum that the manifest says.
struct VerifiedFiles {
  Manifest manifest;
  std::map<std::string, std::shared_ptr<MappedFile>> files;
};

VerifiedFiles verify(const fs::path& folder) {
  const fs::path manifest_path = folder / kManifest;
  std::error_code ignored;
  ERGON_CHECK(fs::is_directory(folder, ignored), "[checkpoint] {} is not a folder", folder.string());
  ERGON_CHECK(fs::exists(manifest_path, ignored), "[checkpoint] {} is not a checkpoint: it has no {}",
              folder.string(), kManifest);
  VerifiedFiles verified;
  verified.manifest = parse_manifest(MappedFile(manifest_path).text(), manifest_path.string());
  for (const char* required : {kModel, kConfig, kOptimizer, kTrainerState}) {
    ERGON_CHECK(verified.manifest.files.contains(required), "[checkpoint] {}: does not list {}",
                manifest_path.string(), required);
  }
  for (const auto& [name, expected] : verified.manifest.files) {
    const fs::path path = folder / name;
    auto file = std::make_shared<MappedFile>(path);
    const std::span<const std::byte> bytes = file->bytes();
    ERGON_CHECK(bytes.size() == expected.size,
                "[checkpoint] {}: {} bytes, the manifest says {}: the file is damaged", path.string(),
                bytes.size(), expected.size);
    const std::uint64_t actual = checksum(bytes.data(), bytes.size());
    ERGON_CHECK(actual == expected.checksum,
                "[checkpoint] {}: checksum {}, the manifest says {}: the file is damaged", path.string(),
                to_hex(actual), to_hex(expected.checksum));
    verified.files[name] = std::move(file);
  }
  return verified;
}

}  // namespace

fs::path save_checkpoint(const fs::path& root, std::int64_t step, const CheckpointParts& parts,
                         int keep_last) {
  ERGON_CHECK(step >= 0, "[checkpoint] step {} must not be negative", step);
  create_folders(root);
  remove_leftovers(root, kPrefix);
  AtomicFolder folder(root / folder_name(step));
  Manifest manifest;
  manifest.step = step;
  const auto write = [&](const char* name, const std::function<void(FileWriter&)>& content) {
    FileWriter writer(folder.temporary() / name, folder.path() / name);
    content(writer);
    writer.close();
    manifest.files[name] = {writer.size(), writer.checksum()};
  };
  const auto write_json = [&](const char* name, const nlohmann::json& value) {
    write(name, [&](FileWriter& writer) { writer.write(to_text(value, writer.name().string())); });
  };
  write(kModel, [&](FileWriter& writer) { write_safetensors(writer, parts.model); });
  write_json(kConfig, parts.config);
  write(kOptimizer, [&](FileWriter& writer) { write_safetensors(writer, parts.optimizer); });
  write_json(kTrainerState, parts.trainer_state);
  FileWriter writer(folder.temporary() / kManifest, folder.path() / kManifest);
  writer.write(to_text(manifest));
  writer.close();
  folder.commit();
  prune(root, step, keep_last);
  return folder.path();
}

Checkpoint load_checkpoint(const fs::path& path) {
  const VerifiedFiles verified = verify(path);
  const auto tensors = [&](const char* name) {
    const std::shared_ptr<MappedFile>& file = verified.files.at(name);
    return SafetensorsFile(file->bytes(), file, file->path().string()).tensors();
  };
  const auto json = [&](const char* name) {
    const MappedFile& file = *verified.files.at(name);
    return parse_json(file.text(), fmt::format("[checkpoint] {}", file.path().string()));
  };
  Checkpoint checkpoint;
  checkpoint.step = verified.manifest.step;
  checkpoint.model = tensors(kModel);
  checkpoint.config = json(kConfig);
  checkpoint.optimizer = tensors(kOptimizer);
  checkpoint.trainer_state = json(kTrainerState);
  return checkpoint;
}

std::optional<fs::path> latest_checkpoint(const fs::path& root) {
  const std::vector<std::int64_t> steps = steps_in(root);
  for (const std::int64_t step : steps) {
    const fs::path path = root / folder_name(step);
    try {
      verify(path);
      return path;
    } catch (const Error& error) {
      const bool oldest = step == steps.back();
      ERGON_CHECK(!oldest, "{}; no other checkpoint in {} can be read: move them away to start afresh",
                  error.what(), root.string());
      log().warn("{}; trying the checkpoint before it", error.what());
    }
  }
  return std::nullopt;
}

}  // namespace ergon::io
