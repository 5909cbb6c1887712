// One kernel's PTX text -> Insn stream: registers become dense slots, labels become indices.
#include <cstdlib>
#include <cstring>
#include <unordered_map>

#include "program.h"

namespace simgpu {
namespace {

constexpr const char* kSpecialNames[] = {"%tid.x",    "%tid.y",    "%tid.z",    "%ntid.x",   "%ntid.y",
                                         "%ntid.z",   "%ctaid.x",  "%ctaid.y",  "%ctaid.z",  "%nctaid.x",
                                         "%nctaid.y", "%nctaid.z", "%laneid",   "%warpid",   "%lanemask_lt",
                                         "%lanemask_le", "%lanemask_eq", "%lanemask_ge", "%lanemask_gt"};

class Decoder {
 public:
  explicit Decoder(Kernel& kernel) : k_(kernel) { scopes_.emplace_back(); }

  void run() {
    for (const auto& [name, size] : k_.module->shared) add_shared(name, 16, size);
    const std::string& s = k_.body;
    size_t p = 0;
    while (p < s.size()) {
      const char c = s[p];
      if (isspace(static_cast<unsigned char>(c)) || c == ';') {
        ++p;
      } else if (c == '{') {
        scopes_.emplace_back();
        ++p;
      } else if (c == '}') {
        scopes_.pop_back();
        ++p;
      } else if (s.compare(p, 4, ".loc") == 0) {
        char* end = nullptr;
        file_ = strtol(s.c_str() + p + 4, &end, 10);
        line_ = strtol(end, nullptr, 10);
        p = std::min(s.find('\n', p), s.size());
      } else if (size_t label = label_end(s, p)) {
        labels_[s.substr(p, label - p)] = static_cast<int>(k_.code.size());
        p = label + 1;
      } else {
        const size_t end = std::min(s.find(';', p), s.size());
        statement(s.substr(p, end - p));
        p = end + 1;
      }
    }
    Insn exit;
    exit.flow = Flow::kExit;
    k_.code.push_back(exit);
    for (auto& [at, label] : fixups_) {
      if (!labels_.count(label)) throw PtxError("undefined label " + label);
      k_.code[at].target = labels_[label];
    }
    k_.file_bytes = (next_ + 63) / 64 * 64;
    // Extern shared arrays start behind the static ones; their size comes with the launch.
    k_.shared_bytes = (k_.shared_bytes + 15) / 16 * 16;
    for (size_t c : dynamic_) k_.constants[c].value += k_.shared_bytes;
  }

 private:
  static size_t label_end(const std::string& s, size_t p) {
    size_t e = p;
    while (e < s.size() && (isalnum(static_cast<unsigned char>(s[e])) || s[e] == '$' || s[e] == '_')) ++e;
    return e > p && e < s.size() && s[e] == ':' && s[e + 1] != ':' ? e : 0;
  }

  Operand allocate(u8 width) {
    const u32 bytes = width == 0 ? 4 : 32u * width;
    next_ = width == 0 ? next_ : (next_ + 63) / 64 * 64;
    Operand o{next_, width};
    next_ += bytes;
    ++k_.num_registers;
    return o;
  }

  void add_shared(const std::string& name, u32 align, u32 size) {
    k_.shared_bytes = (k_.shared_bytes + align - 1) / align * align;
    shared_[name] = k_.shared_bytes;
    k_.shared_bytes += size;
  }

  void declare_registers(const std::string& text) {  // ".reg .b32 %r<21>" or ".reg .pred p, q"
    const size_t dot = text.find('.', 4), space = text.find_first_of(" \t", dot);
    const std::string type = text.substr(dot + 1, space - dot - 1);
    const u8 width = type == "pred" ? 0 : static_cast<u8>(type_bytes(type));
    std::string name;
    for (size_t i = space; i <= text.size(); ++i) {
      const char c = i < text.size() ? text[i] : ',';
      if (c == ',') {
        const size_t angle = name.find('<');
        if (angle == std::string::npos) {
          scopes_.back()[name] = allocate(width);
        } else {
          const int n = atoi(name.c_str() + angle + 1);
          for (int r = 0; r < n; ++r) scopes_.back()[name.substr(0, angle) + std::to_string(r)] = allocate(width);
        }
        name.clear();
      } else if (!isspace(static_cast<unsigned char>(c))) {
        name += c;
      }
    }
  }

  Operand constant(u64 value, u8 width) {
    for (const Constant& c : k_.constants) {
      if (c.value == value && c.slot.width == width) return c.slot;
    }
    Constant c{allocate(width), value};
    k_.constants.push_back(c);
    return c.slot;
  }

  Operand operand(const std::string& token, int width) {
    for (size_t i = scopes_.size(); i-- > 0;) {
      auto it = scopes_[i].find(token);
      if (it != scopes_[i].end()) return it->second;
    }
    if (width < 4) width = width == 2 ? 2 : 4;
    if (token == "WARP_SZ") return constant(32, static_cast<u8>(width));
    for (int i = 0; i < static_cast<int>(std::size(kSpecialNames)); ++i) {
      if (token != kSpecialNames[i]) continue;
      for (const Special& s : k_.specials) {
        if (s.index == i) return s.slot;
      }
      k_.specials.push_back({allocate(4), i});
      return k_.specials.back().slot;
    }
    if (auto it = shared_.find(token); it != shared_.end()) return constant(it->second, static_cast<u8>(width));
    for (const std::string& name : k_.module->dynamic_shared) {
      if (name != token) continue;
      k_.constants.push_back({allocate(static_cast<u8>(width)), 0});
      dynamic_.push_back(k_.constants.size() - 1);
      return k_.constants.back().slot;
    }
    if (auto it = k_.module->variables.find(token); it != k_.module->variables.end()) {
      return constant(it->second.address, 8);
    }
    if (token.size() > 2 && token[0] == '0' && strchr("fFdD", token[1])) {
      return constant(strtoull(token.c_str() + 2, nullptr, 16), static_cast<u8>(width));
    }
    char* end = nullptr;
    const u64 value = token[0] == '-' ? static_cast<u64>(strtoll(token.c_str(), &end, 0))
                                      : strtoull(token.c_str(), &end, 0);
    if (token.empty() || (*end && *end != 'U')) throw PtxError("operand " + token + " is not supported");
    return constant(value, static_cast<u8>(width));
  }

  static std::vector<std::string> tokens(const std::string& text) {
    std::vector<std::string> out;
    std::string word;
    bool bracket = false;
    auto flush = [&] {
      if (!word.empty()) out.push_back(word);
      word.clear();
    };
    for (char c : text) {
      if (c == '[') bracket = true;
      const bool space = isspace(static_cast<unsigned char>(c));
      if (bracket && space) continue;
      if (!bracket && (space || strchr(",|{}()", c))) {
        flush();
      } else {
        word += c;
      }
      if (c == ']') {
        bracket = false;
        flush();
      }
    }
    flush();
    return out;
  }

  void statement(const std::string& text) {
    std::vector<std::string> t = tokens(text);
    if (t.empty() || t[0] == ".pragma") return;
    if (t[0] == ".reg") return declare_registers(text);
    if (t[0] == ".shared") {
      u32 align = 1, element = 1;
      for (size_t i = 1; i + 1 < t.size(); ++i) {
        if (t[i] == ".align") align = atoi(t[++i].c_str());
        else if (int b = type_bytes(std::string_view(t[i]).substr(1))) element = b;
      }
      const size_t bracket = text.find('[');
      std::string name = t.back().substr(0, t.back().find('['));
      add_shared(name, std::max(align, element),
                 bracket == std::string::npos ? element : element * atoi(text.c_str() + bracket + 1));
      return;
    }
    try {
      instruction(t);
    } catch (const PtxError& e) {
      throw PtxError(std::string(e.what()) + " in \"" + text + "\"" + location());
    }
  }

  std::string location() const {
    auto it = k_.module->files.find(file_);
    return it == k_.module->files.end() ? "" : " (" + it->second + ":" + std::to_string(line_) + ")";
  }

  void instruction(std::vector<std::string>& t) {
    Insn insn;
    insn.file = file_;
    insn.line = line_;
    size_t x = 0;
    if (t[0][0] == '@') {
      insn.guard_negated = t[0][1] == '!';
      insn.guard = static_cast<int>(operand(t[0].substr(insn.guard_negated ? 2 : 1), 0).offset);
      x = 1;
    }
    Opcode opcode;
    opcode.text = t[x];
    for (size_t p = 0; p <= opcode.text.size();) {
      const size_t e = std::min(opcode.text.find('.', p), opcode.text.size());
      opcode.part.push_back(std::string_view(opcode.text).substr(p, e - p));
      p = e + 1;
    }
    const std::string_view base = opcode.part[0];
    std::vector<std::string> args(t.begin() + x + 1, t.end());
    if (base == "bra") {
      insn.flow = Flow::kBranch;
      fixups_.push_back({k_.code.size(), args.at(0)});
    } else if (base == "ret" || base == "exit") {
      insn.flow = Flow::kExit;
    } else if (base == "ld" && opcode.has("param")) {
      decode_param(insn, opcode, args);
    } else {
      if (!select_handler(insn, opcode, args.size())) throw PtxError("unsupported PTX instruction " + opcode.text);
      if (args.size() > std::size(insn.op)) throw PtxError("too many operands");
      const bool wide = base == "mul" && opcode.has("wide");
      for (size_t i = 0; i < args.size(); ++i) {
        int width = type_bytes(opcode.type());
        if (insn.flow == Flow::kBlockBarrier || base == "shfl") width = 4;
        if ((base == "shl" || base == "shr") && i == 2) width = 4;
        if (base == "mad" && opcode.has("wide") && i == 3) width *= 2;
        if (wide && i == 0) width *= 2;
        insn.op[i] = address_or_operand(insn, args[i], width ? width : 4);
      }
      if (base == "shfl" && args.size() == 5) insn.op[5] = insn.op[4], insn.op[4] = insn.op[3], insn.op[3] = insn.op[2],
                            insn.op[2] = insn.op[1], insn.op[1] = allocate(0);
      if (insn.count == 0) insn.count = static_cast<u8>(args.size());
    }
    k_.code.push_back(insn);
  }

  Operand address_or_operand(Insn& insn, std::string token, int width) {
    if (token[0] != '[') {
      const bool negated = token[0] == '!';
      if (negated) throw PtxError("negated predicate operand is not supported");
      return operand(token, width);
    }
    token = token.substr(1, token.size() - 2);
    const size_t plus = token.find('+');
    if (plus != std::string::npos) {
      insn.imm = strtoll(token.c_str() + plus + 1, nullptr, 0);
      token.resize(plus);
    }
    return operand(token, 8);
  }

  void decode_param(Insn& insn, const Opcode& opcode, const std::vector<std::string>& args) {
    std::string name = args.back().substr(1, args.back().size() - 2);
    long long offset = 0;
    if (const size_t plus = name.find('+'); plus != std::string::npos) {
      offset = strtoll(name.c_str() + plus + 1, nullptr, 0);
      name.resize(plus);
    }
    for (const Param& p : k_.params) {
      if (p.name != name) continue;
      if (!select_handler(insn, opcode, args.size())) throw PtxError("unsupported PTX instruction " + opcode.text);
      for (size_t i = 0; i + 1 < args.size(); ++i) insn.op[i] = operand(args[i], insn.bytes);
      insn.imm = p.offset + offset;
      return;
    }
    throw PtxError("calls of device functions are not supported (compile with inlining): " + opcode.text);
  }

  Kernel& k_;
  std::vector<std::unordered_map<std::string, Operand>> scopes_;
  std::unordered_map<std::string, int> labels_;
  std::unordered_map<std::string, u32> shared_;
  std::vector<std::pair<size_t, std::string>> fixups_;
  std::vector<size_t> dynamic_;
  u32 next_ = 0;
  int file_ = 0, line_ = 0;
};

}  // namespace

bool Opcode::has(std::string_view modifier) const {
  for (size_t i = 1; i < part.size(); ++i) {
    if (part[i] == modifier) return true;
  }
  return false;
}

void decode(Kernel& kernel) {
  if (kernel.decoded) return;
  Decoder(kernel).run();
  kernel.decoded = true;
}

}  // namespace simgpu
