// Reading; safetensors_write.cpp has the other half.

#include "models/io/safetensors.h"

#include <algorithm>
#include <bit>
#include <cstring>
#include <tuple>

#include "core/error.h"
#include "models/io/json.h"
#include "models/io/mapped_file.h"
#include "models/io/safetensors_dtype.h"

namespace ergon::io {
namespace fs = std::filesystem;
namespace {

using nlohmann::json;

static_assert(std::endian::native == std::endian::little, "safetensors data are read and written in place");

constexpr std::uint64_t kLengthBytes = 8;
constexpr std::uint64_t kMaxHeader = 100'000'000;  // as the reference implementation

// The value as an unsigned 64-bit integer that also fits in int64; no sign, fraction or exponent.
std::uint64_t to_size(const json& value, const std::string& where) {
  ERGON_CHECK(value.is_number_unsigned() && value.get<std::uint64_t>() <= INT64_MAX,
              "{} must be an integer in [0, 2^63), got {}", where, quote(value.dump()));
  return value.get<std::uint64_t>();
}

const json& member(const json& object, const char* key, const std::string& where) {
  const auto found = object.find(key);
  ERGON_CHECK(found != object.end(), "{} has no {}", where, key);
  return *found;
}

Shape parse_shape(const json& value, const std::string& where) {
  ERGON_CHECK(value.is_array(), "{}: shape must be an array, got {}", where, quote(value.type_name()));
  ERGON_CHECK(value.size() <= Dims::kMaxDims, "{} has {} dimensions, at most {} are supported", where,
              value.size(), Dims::kMaxDims);
  Shape shape;
  for (const json& size : value) {
    shape.push_back(static_cast<std::int64_t>(to_size(size, where + ": a size in the shape")));
  }
  return shape;
}

// Elements × element size; throws where that, or a stride, does not fit in int64.
std::uint64_t bytes_of(const Shape& shape, DType dtype, const std::string& where) {
  std::int64_t bytes = size_of(dtype);
  bool overflow = false, none = false;
  for (const std::int64_t size : shape) {
    none |= size == 0;
    overflow |= __builtin_mul_overflow(bytes, std::max<std::int64_t>(size, 1), &bytes);
  }
  ERGON_CHECK(!overflow, "{}: shape {} has more than 2^63 bytes", where, shape);
  return none ? 0 : static_cast<std::uint64_t>(bytes);
}

TensorEntry parse_entry(const std::string& name, const json& value, std::uint64_t data_size,
                        const std::string& where) {
  ERGON_CHECK(value.is_object(), "{} must be an object, got {}", where, quote(value.type_name()));
  const json& dtype = member(value, "dtype", where);
  ERGON_CHECK(dtype.is_string(), "{}: dtype must be a string, got {}", where, quote(dtype.type_name()));
  TensorEntry entry;
  entry.name = name;
  entry.dtype = parse_safetensors_dtype(dtype.get_ref<const std::string&>(), where);
  entry.shape = parse_shape(member(value, "shape", where), where);

  const json& offsets = member(value, "data_offsets", where);
  ERGON_CHECK(offsets.is_array() && offsets.size() == 2, "{}: data_offsets must be [begin, end], got {}",
              where, quote(offsets.dump()));
  entry.begin = to_size(offsets[0], where + ": data_offsets");
  entry.end = to_size(offsets[1], where + ": data_offsets");
  ERGON_CHECK(entry.begin <= entry.end && entry.end <= data_size,
              "{}: data_offsets [{}, {}] are out of range: the file has {} bytes of data", where, entry.begin,
              entry.end, data_size);
  const std::uint64_t expected = bytes_of(entry.shape, entry.dtype, where);
  ERGON_CHECK(entry.end - entry.begin == expected,
              "{}: shape {} of {} needs {} bytes, data_offsets [{}, {}] give {}", where, entry.shape,
              name_of(entry.dtype), expected, entry.begin, entry.end, entry.end - entry.begin);
  return entry;
}

Metadata parse_metadata(const json& value, const std::string& file) {
  ERGON_CHECK(value.is_object(), "[safetensors] {}: __metadata__ must be an object, got {}", file,
              quote(value.type_name()));
  Metadata metadata;
  for (const auto& [key, text] : value.items()) {
    ERGON_CHECK(text.is_string(), "[safetensors] {}: __metadata__ {} must be a string, got {}", file,
                quote(key), quote(text.type_name()));
    metadata[key] = text.get<std::string>();
  }
  return metadata;
}

}  // namespace

SafetensorsFile::SafetensorsFile(const fs::path& path) : name_(path.string()) {
  auto mapped = std::make_shared<MappedFile>(path);
  bytes_ = mapped->bytes();
  owner_ = std::move(mapped);
  parse();
}

SafetensorsFile::SafetensorsFile(std::span<std::byte> bytes, std::shared_ptr<void> owner, std::string name)
    : name_(std::move(name)), bytes_(bytes), owner_(std::move(owner)) {
  parse();
}

void SafetensorsFile::parse() {
  ERGON_CHECK(bytes_.size() >= kLengthBytes, "[safetensors] {}: {} bytes, expected at least {}", name_,
              bytes_.size(), kLengthBytes);
  std::uint64_t length = 0;
  std::memcpy(&length, bytes_.data(), kLengthBytes);
  ERGON_CHECK(length <= kMaxHeader, "[safetensors] {}: header of {} bytes, at most {} are allowed", name_,
              length, kMaxHeader);
  ERGON_CHECK(length <= bytes_.size() - kLengthBytes,
              "[safetensors] {}: truncated: header of {} bytes, the file has {} after its length", name_,
              length, bytes_.size() - kLengthBytes);
  const std::string_view text(reinterpret_cast<const char*>(bytes_.data()) + kLengthBytes, length);
  data_ = bytes_.subspan(kLengthBytes + length);
  ERGON_CHECK(text.starts_with('{'), "[safetensors] {}: the header does not begin with '{{'", name_);
  const json header = parse_json(text, fmt::format("[safetensors] {}", name_));

  for (const auto& [key, value] : header.items()) {
    if (key == "__metadata__") {
      metadata_ = parse_metadata(value, name_);
    } else {
      const std::string where = fmt::format("[safetensors] {}: tensor {}", name_, quote(key));
      entries_.push_back(parse_entry(key, value, data_.size(), where));
    }
  }
  std::sort(entries_.begin(), entries_.end(), [](const TensorEntry& a, const TensorEntry& b) {
    return std::tie(a.begin, a.end, a.name) < std::tie(b.begin, b.end, b.name);
  });
  std::uint64_t covered = 0;
  for (const TensorEntry& entry : entries_) {
    ERGON_CHECK(entry.begin == covered, "[safetensors] {}: tensor {} begins at byte {}, {} {}", name_,
                quote(entry.name), entry.begin,
                entry.begin < covered ? "overlapping data up to" : "leaving a gap after", covered);
    covered = entry.end;
    index_.emplace(entry.name, index_.size());
  }
  ERGON_CHECK(covered == data_.size(), "[safetensors] {}: {} bytes of data, the tensors cover {}", name_,
              data_.size(), covered);
}

Tensor SafetensorsFile::tensor(const TensorEntry& entry) const {
  std::byte* data = data_.data() + entry.begin;
  const std::uint64_t bytes = entry.end - entry.begin;
  if (entry.dtype == DType::boolean) {  // any other value in a bool is undefined behaviour
    for (std::uint64_t i = 0; i < bytes; ++i) {
      ERGON_CHECK(data[i] <= std::byte{1}, "[safetensors] {}: tensor {}: element {} of BOOL is {}", name_,
                  quote(entry.name), i, static_cast<int>(data[i]));
    }
  }
  if (bytes == 0) return empty(entry.shape, {.dtype = entry.dtype});
  if (reinterpret_cast<std::uintptr_t>(data) % static_cast<std::uint64_t>(size_of(entry.dtype)) == 0) {
    return from_blob(data, entry.shape, entry.dtype, owner_);
  }
  Tensor copy = empty(entry.shape, {.dtype = entry.dtype});
  std::memcpy(copy.data_ptr(), data, bytes);
  return copy;
}

Tensor SafetensorsFile::tensor(const std::string& name) const {
  const auto found = index_.find(name);
  ERGON_CHECK(found != index_.end(), "[safetensors] {}: no tensor {} among {}", name_, quote(name),
              entries_.size());
  return tensor(entries_[found->second]);
}

NamedTensors SafetensorsFile::tensors() const {
  NamedTensors all;
  all.reserve(entries_.size());
  for (const TensorEntry& entry : entries_) all.emplace_back(entry.name, tensor(entry));
  return all;
}

std::map<std::string, std::string> parse_safetensors_index(std::string_view text, std::string_view name) {
  const json index = parse_json(text, fmt::format("[safetensors] {}", name));
  ERGON_CHECK(index.is_object() && index.contains("weight_map") && index["weight_map"].is_object(),
              "[safetensors] {}: no object \"weight_map\"", name);
  std::map<std::string, std::string> weight_map;
  for (const auto& [tensor, file] : index["weight_map"].items()) {
    ERGON_CHECK(file.is_string(), "[safetensors] {}: the file of tensor {} must be a string, got {}", name,
                quote(tensor), quote(file.type_name()));
    const auto& file_name = file.get_ref<const std::string&>();
    const bool plain = !file_name.empty() && file_name != "." && file_name != ".."
                       && file_name.find('/') == std::string::npos
                       && file_name.find('\0') == std::string::npos;
    ERGON_CHECK(plain, "[safetensors] {}: tensor {} is in {}, expected a file name without folders", name,
                quote(tensor), quote(file_name));
    weight_map[tensor] = file_name;
  }
  return weight_map;
}

namespace {

NamedTensors read_sharded(const fs::path& index_path) {
  const MappedFile index(index_path);
  ERGON_CHECK(index.bytes().size() <= kMaxHeader, "[safetensors] {}: index of {} bytes, at most {} allowed",
              index_path.string(), index.bytes().size(), kMaxHeader);
  std::map<std::string, SafetensorsFile> files;
  NamedTensors tensors;
  for (const auto& [tensor, file_name] : parse_safetensors_index(index.text(), index_path.string())) {
    auto file = files.find(file_name);
    if (file == files.end()) {
      file = files.emplace(file_name, SafetensorsFile(index_path.parent_path() / file_name)).first;
    }
    tensors.emplace_back(tensor, file->second.tensor(tensor));
  }
  return tensors;
}

}  // namespace

NamedTensors read_safetensors(const fs::path& path) {
  std::error_code ignored;
  if (fs::is_directory(path, ignored)) {
    const fs::path file = path / "model.safetensors";
    const fs::path index = path / "model.safetensors.index.json";
    if (fs::exists(file, ignored)) return SafetensorsFile(file).tensors();
    ERGON_CHECK(fs::exists(index, ignored), "[safetensors] {} has neither {} nor {}", path.string(),
                file.filename().string(), index.filename().string());
    return read_sharded(index);
  }
  if (path.extension() == ".json") return read_sharded(path);
  return SafetensorsFile(path).tensors();
}

}  // namespace ergon::io
