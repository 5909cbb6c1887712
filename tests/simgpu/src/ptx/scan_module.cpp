// Splits a PTX module into functions, variables and source files; bodies are decoded when a kernel is first
// launched.
#include <algorithm>
#include <cstdlib>

#include "memory.h"
#include "ptx/program.h"
#include "ptx/scan.h"

namespace simgpu {

int type_bytes(std::string_view type) {
  if (type == "f16x2" || type == "bf16x2") return 4;
  if (type == "f16" || type == "bf16") return 2;
  if (type == "tf32") return 4;
  if (type.size() < 2 || !std::strchr("bsuf", type[0])) return 0;
  const std::string_view bits = type.substr(1);
  return bits == "8" ? 1 : bits == "16" ? 2 : bits == "32" ? 4 : bits == "64" ? 8 : bits == "128" ? 16 : 0;
}

Declaration scan_declaration(Scanner& scanner) {
  Declaration d;
  while (scanner.peek() == '.') {
    const std::string_view word = scanner.word();
    if (word == ".align") {
      d.align = static_cast<u32>(scanner.number());
    } else if (word == ".ptr" || word == ".global" || word == ".shared" || word == ".const"
               || word == ".local" || word == ".v2" || word == ".v4") {
      if (word.starts_with(".v")) throw PtxError("PTX: vector variables are not supported");
    } else if (word == ".attribute") {  // (.managed): all memory is
      scanner.expect('(');
      scanner.word();
      scanner.expect(')');
    } else {
      d.type = word.substr(1);
      if (const int bytes = type_bytes(d.type)) d.element_bytes = static_cast<u32>(bytes);
    }
  }
  d.align = std::max(d.align, d.element_bytes);
  d.name = scanner.word();
  if (scanner.accept('<')) {
    d.range = static_cast<int>(scanner.number());
    scanner.expect('>');
  }
  while (scanner.accept('[')) {
    const u64 n = scanner.peek() == ']' ? 0 : scanner.number();
    d.elements = d.elements.value_or(1) * n;
    scanner.expect(']');
  }
  return d;
}

namespace {

std::vector<ParamDeclaration> scan_params(Scanner& s) {
  std::vector<ParamDeclaration> params;
  if (!s.accept('(')) return params;
  while (!s.accept(')')) {
    const std::string_view space = s.word();
    if (space != ".param" && space != ".reg")
      throw PtxError("PTX: expected .param, got " + std::string(space));
    const Declaration d = scan_declaration(s);
    params.push_back({d.name, d.bytes(), d.align});
    s.accept(',');
  }
  return params;
}

// One number of an initialiser: integer, 0f/0d hexadecimal, or a symbol's address.
u64 initial_value(const ModuleText& module, Scanner& s, u32 bytes) {
  std::string word(s.word());
  bool generic = false;
  if (word == "generic") {
    s.expect('(');
    word = s.word();
    s.expect(')');
    generic = true;
  }
  if (const auto variable = module.variables.find(word); generic || variable != module.variables.end()) {
    if (variable == module.variables.end())
      throw PtxError("PTX: initialiser names " + word + ", which is not known");
    u64 address = variable->second.address;
    if (s.accept('+')) address += s.number();
    return address;
  }
  if (word.size() > 2 && word[0] == '0' && std::strchr("fFdD", word[1])) {
    return std::strtoull(word.c_str() + 2, nullptr, 16);
  }
  char* end = nullptr;
  const u64 value = word[0] == '-' ? static_cast<u64>(std::strtoll(word.c_str(), &end, 0))
                                   : std::strtoull(word.c_str(), &end, 0);
  if (end == word.c_str())
    throw PtxError("PTX: initialiser \"" + word + "\" is not a number of " + std::to_string(bytes)
                   + " bytes");
  return value;
}

class ModuleScanner {
 public:
  ModuleScanner(ModuleText& module, int device) : module_(module), device_(device), s_(module.ptx) {}

  void run() {
    while (!s_.done()) {
      const std::string_view word = s_.word();
      if (word == ".version" || word == ".address_size") {
        s_.word();
      } else if (word == ".target") {
        module_.target = s_.word();
        while (s_.accept(',')) s_.word();
      } else if (word == ".file") {
        const u32 index = static_cast<u32>(s_.number());
        module_.files[index] = s_.quoted();
        s_.rest_of_line();
      } else if (word == ".section") {
        s_.word();
        s_.braces();
      } else if (word == ".visible" || word == ".extern" || word == ".weak" || word == ".common") {
        extern_ = word == ".extern" || extern_;
        continue;
      } else if (word == ".entry" || word == ".func") {
        function(word == ".entry");
      } else if (word == ".global" || word == ".const" || word == ".shared") {
        variable(word);
      } else if (word == ".pragma" || word == ".alias") {
        s_.until(';');
        s_.accept(';');
      } else {
        throw PtxError("PTX: module directive " + std::string(word) + " is not supported");
      }
      extern_ = false;
    }
  }

 private:
  void function(bool entry) {
    FunctionText f;
    f.entry = entry;
    if (!entry) f.results = scan_params(s_);
    f.name = s_.word();
    f.params = scan_params(s_);
    while (s_.peek() == '.') {  // .maxntid, .minnctapersm, .noreturn, ...
      const std::string_view directive = s_.word();
      if (directive == ".noreturn") continue;
      if (directive == ".pragma") {
        s_.quoted();
        s_.accept(';');
        continue;
      }
      u64 product = s_.number();
      while (s_.accept(',')) product *= s_.number();
      if (directive == ".maxntid" || directive == ".reqntid") f.max_threads = static_cast<u32>(product);
    }
    if (s_.peek() == '{') {
      f.body = s_.braces();
    } else {
      s_.expect(';');
    }
    FunctionText& known = module_.functions[f.name];
    if (known.body.empty()) known = std::move(f);
  }

  void variable(std::string_view space) {
    const Declaration d = scan_declaration(s_);
    if (space == ".shared") {
      module_.shared[d.name] = {d.bytes(), d.align, extern_ && d.elements == u64{0}};
      return s_.expect(';');
    }
    const u32 size = std::max<u32>(d.bytes(), 1);
    const std::string kind = space == ".const" ? "__constant__ variable " : "__device__ variable ";
    void* data = memory::allocate(size, MemoryKind::kVariable, device_, kInitialised, kind + d.name);
    if (data == nullptr) throw PtxError("simulated GPU: no memory for " + kind + d.name);
    std::memset(data, 0, size);
    module_.variables[d.name] = {d.name, reinterpret_cast<u64>(data), d.bytes(), space == ".const"};
    if (s_.accept('=')) {
      const bool list = s_.accept('{');
      for (u32 at = 0; at < size; at += d.element_bytes) {
        const u64 value = initial_value(module_, s_, d.element_bytes);
        std::memcpy(static_cast<char*>(data) + at, &value, d.element_bytes);
        if (!s_.accept(',')) break;
      }
      if (list) s_.expect('}');
    }
    s_.expect(';');
  }

  ModuleText& module_;
  int device_;
  Scanner s_;
  bool extern_ = false;
};

}  // namespace

std::unique_ptr<ModuleText> scan_module(std::string ptx, int device) {
  auto module = std::make_unique<ModuleText>();
  module->ptx = std::move(ptx);
  while (!module->ptx.empty() && module->ptx.back() == '\0') module->ptx.pop_back();
  ModuleScanner(*module, device).run();
  return module;
}

}  // namespace simgpu
