#pragma once

// safetensors: u64 header length, JSON header, raw little-endian data. Names are those Hugging Face uses.
// dtypes: F32 BF16 F16 F64 I8 U8 I32 I64 BOOL.

#include <cstddef>
#include <cstdint>
#include <filesystem>
#include <map>
#include <memory>
#include <span>
#include <string>
#include <unordered_map>
#include <utility>
#include <vector>

#include "core/tensor.h"
#include "models/io/file_writer.h"

namespace ergon::io {

using NamedTensors = std::vector<std::pair<std::string, Tensor>>;
using Metadata = std::map<std::string, std::string>;

// One entry of the header.
struct TensorEntry {
  std::string name;
  DType dtype = DType::f32;
  Shape shape;
  std::uint64_t begin = 0;  // bytes from the start of the data
  std::uint64_t end = 0;
};

// A file that has been checked as a whole: every entry's dtype, shape and offsets agree, and the entries
// cover the data without gap or overlap. Errors name the file, the tensor, the expected and the actual.
class SafetensorsFile {
 public:
  // Maps the file.
  explicit SafetensorsFile(const std::filesystem::path& path);
  // The same from memory that `owner` keeps alive; `name` stands for the path in errors.
  SafetensorsFile(std::span<std::byte> bytes, std::shared_ptr<void> owner, std::string name);

  // In the order of the data.
  const std::vector<TensorEntry>& entries() const { return entries_; }
  const Metadata& metadata() const { return metadata_; }
  bool contains(const std::string& name) const { return index_.contains(name); }

  // A tensor over the file's memory, which it keeps alive; nothing is read before it is used. A tensor that
  // the file does not align to its element size is copied. Writing to it never changes the file.
  Tensor tensor(const std::string& name) const;
  // All of them.
  NamedTensors tensors() const;

 private:
  void parse();
  Tensor tensor(const TensorEntry& entry) const;

  std::string name_;
  std::span<std::byte> bytes_;
  std::span<std::byte> data_;
  std::shared_ptr<void> owner_;
  std::vector<TensorEntry> entries_;
  std::unordered_map<std::string, std::size_t> index_;
  Metadata metadata_;
};

// The tensors of a .safetensors file, of a sharded model's index (model.safetensors.index.json), or of a
// folder that holds model.safetensors or that index; as SafetensorsFile::tensor.
NamedTensors read_safetensors(const std::filesystem::path& path);

// "weight_map" of an index: tensor name → file name. Throws Error "<name>: ..." for anything but names of
// files beside the index.
std::map<std::string, std::string> parse_safetensors_index(std::string_view text, std::string_view name);

// Writes a file atomically, tensor by tensor, sorted by element size (widest first, so that all are aligned)
// and name; the data begin at a multiple of 64 bytes. Tensors may be strided and on any device. Throws Error
// for an undefined tensor or a name that occurs twice.
void write_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                       const Metadata& metadata = {{"format", "pt"}});
// The same into an open file.
void write_safetensors(FileWriter& writer, const NamedTensors& tensors,
                       const Metadata& metadata = {{"format", "pt"}});

}  // namespace ergon::io
