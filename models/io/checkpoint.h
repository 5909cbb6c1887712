#pragma once

// Checkpoints of a training run: folders ROOT/step-00000100/ with
//   model.safetensors        weights under Hugging Face's names
//   config.json              the model's configuration
//   optimizer.safetensors    the optimiser's tensors
//   trainer_state.json       step, generators, loader, ...
//   manifest.json            size and XXH3-64 checksum of each file, and the checksum of itself
// A checkpoint appears whole or not at all, and every damaged byte is noticed. One run writes to a ROOT at a
// time; any number may read.

#include <cstdint>
#include <filesystem>
#include <map>
#include <optional>
#include <string>
#include <string_view>

#include <nlohmann/json.hpp>

#include "models/io/safetensors.h"

namespace ergon::io {

struct CheckpointParts {
  NamedTensors model;
  nlohmann::json config;
  NamedTensors optimizer;
  nlohmann::json trainer_state;
};

struct Checkpoint : CheckpointParts {
  std::int64_t step = 0;  // the tensors lie in the mapped files, which stay readable after a removal
};

// Writes ROOT/step-<step>, replacing one of that step, and returns its path. Once it is on the disk, older
// checkpoints beyond the newest `keep_last` (this one included; 0: keep all) are removed; checkpoints of
// later steps are left alone. Whatever interrupted runs have left is removed as well. Throws Error that names
// the path and the reason; then ROOT's checkpoints are as they were.
std::filesystem::path save_checkpoint(const std::filesystem::path& root, std::int64_t step,
                                      const CheckpointParts& parts, int keep_last = 0);

// Verifies the manifest and every size and checksum, then opens the parts. Throws Error that names the file,
// the expected and the actual.
Checkpoint load_checkpoint(const std::filesystem::path& path);

// The checkpoint of the highest step in ROOT that verifies; damaged ones are logged as warnings and passed
// over. Nothing if there is none, or no ROOT. Throws Error if there are checkpoints but none verifies.
std::optional<std::filesystem::path> latest_checkpoint(const std::filesystem::path& root);

// --- the manifest, for tests and tools ---

struct Manifest {
  struct File {
    std::uint64_t size = 0;
    std::uint64_t checksum = 0;
  };
  std::int64_t step = 0;
  std::map<std::string, File> files;
};

std::string to_text(const Manifest& manifest);
// The inverse; throws Error "[checkpoint] <name>: ...".
Manifest parse_manifest(std::string_view text, std::string_view name);

}  // namespace ergon::io
