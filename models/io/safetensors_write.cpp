#include <algorithm>
#include <array>

#include "core/error.h"
#include "models/io/atomic_file.h"
#include "models/io/json.h"
#include "models/io/safetensors.h"
#include "models/io/safetensors_dtype.h"

namespace ergon::io {
namespace {

using nlohmann::ordered_json;

constexpr std::array<std::pair<DType, std::string_view>, 9> kNames{{{DType::f32, "F32"},
                                                                    {DType::bf16, "BF16"},
                                                                    {DType::f16, "F16"},
                                                                    {DType::f64, "F64"},
                                                                    {DType::i8, "I8"},
                                                                    {DType::u8, "U8"},
                                                                    {DType::i32, "I32"},
                                                                    {DType::i64, "I64"},
                                                                    {DType::boolean, "BOOL"}}};

// Pointers to `tensors` in the order of the file.
std::vector<const NamedTensors::value_type*> in_file_order(const NamedTensors& tensors,
                                                           const std::string& file) {
  std::vector<const NamedTensors::value_type*> order;
  order.reserve(tensors.size());
  for (const auto& named : tensors) {
    ERGON_CHECK(named.second.defined(), "[safetensors] {}: tensor {} is undefined", file, quote(named.first));
    ERGON_CHECK(named.first != "__metadata__", "[safetensors] {}: a tensor cannot be named '__metadata__'",
                file);
    order.push_back(&named);
  }
  std::sort(order.begin(), order.end(), [](const auto* a, const auto* b) {
    const std::int64_t size_a = size_of(a->second.dtype()), size_b = size_of(b->second.dtype());
    return size_a != size_b ? size_a > size_b : a->first < b->first;
  });
  std::vector<std::string_view> names;
  names.reserve(order.size());
  for (const auto* named : order) names.push_back(named->first);
  std::sort(names.begin(), names.end());
  const auto twice = std::adjacent_find(names.begin(), names.end());
  ERGON_CHECK(twice == names.end(), "[safetensors] {}: two tensors are named {}", file, quote(*twice));
  return order;
}

std::string make_header(const std::vector<const NamedTensors::value_type*>& order, const Metadata& metadata,
                        const std::string& file) {
  ordered_json header = ordered_json::object();
  if (!metadata.empty()) header["__metadata__"] = metadata;
  std::int64_t offset = 0;
  for (const auto* named : order) {
    const Tensor& tensor = named->second;
    const std::int64_t end = offset + tensor.nbytes();
    ordered_json entry;
    entry["dtype"] = safetensors_name(tensor.dtype());
    entry["shape"] = std::vector<std::int64_t>(tensor.shape().begin(), tensor.shape().end());
    entry["data_offsets"] = {offset, end};
    // ordered_json looks a key up by walking all of them; the names are known to be distinct.
    header.get_ref<ordered_json::object_t&>().emplace_back(named->first, std::move(entry));
    offset = end;
  }
  std::string text;
  try {
    text = header.dump();
  } catch (const ordered_json::exception&) {
    ERGON_FAIL("[safetensors] {}: a name or metadata string is not UTF-8", file);
  }
  constexpr std::size_t kAlignment = 64;  // of the data; 8 bytes of length come before the header
  while ((8 + text.size()) % kAlignment != 0) text += ' ';
  return text;
}

}  // namespace

std::string_view safetensors_name(DType dtype) {
  for (const auto& [candidate, name] : kNames) {
    if (candidate == dtype) return name;
  }
  ERGON_INTERNAL_ASSERT(false);
}

DType parse_safetensors_dtype(std::string_view name, std::string_view where) {
  for (const auto& [dtype, candidate] : kNames) {
    if (candidate == name) return dtype;
  }
  ERGON_FAIL("{} has dtype {}: expected one of F32, BF16, F16, F64, I8, U8, I32, I64, BOOL", where,
             quote(name));
}

void write_safetensors(FileWriter& writer, const NamedTensors& tensors, const Metadata& metadata) {
  const std::string file = writer.name().string();
  const auto order = in_file_order(tensors, file);
  const std::string header = make_header(order, metadata, file);
  const std::uint64_t length = header.size();
  writer.write(&length, sizeof length);
  writer.write(header);
  for (const auto* named : order) {
    const Tensor dense = named->second.detach().to(Device::cpu()).contiguous();
    writer.write(dense.data_ptr(), static_cast<std::size_t>(dense.nbytes()));
  }
}

void write_safetensors(const std::filesystem::path& path, const NamedTensors& tensors,
                       const Metadata& metadata) {
  AtomicFile file(path);
  write_safetensors(file.writer(), tensors, metadata);
  file.commit();
}

}  // namespace ergon::io
