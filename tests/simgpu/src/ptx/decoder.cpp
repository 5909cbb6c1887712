#include "ptx/decoder.h"

#include <algorithm>
#include <atomic>
#include <bit>
#include <cstdlib>

namespace simgpu {

Decoder::Decoder(const ModuleText& module, Program& program, const FunctionText& text, Function& function)
    : module_(module), program_(program), text_(text), function_(function), s_(text.body), scopes_(1) {}

void Decoder::run() {
  if (!text_.entry) {
    const auto place = [&](const std::vector<ParamDeclaration>& list, std::vector<Area>& areas) {
      for (const ParamDeclaration& p : list) {
        const Area area{allocate_bytes(32 * p.bytes, 64), p.bytes};
        areas.push_back(area);
        function_.slots.push_back(area);
        areas_[p.name] = area;
      }
    };
    place(text_.params, function_.params);
    place(text_.results, function_.results);
  }
  while (!s_.done()) {
    if (s_.accept(';')) continue;
    if (s_.accept('{')) {
      scopes_.emplace_back();
    } else if (s_.accept('}')) {
      scopes_.pop_back();
    } else {
      statement(s_.word());
    }
  }
  Insn end;
  end.flow = text_.entry ? Flow::kExit : Flow::kReturn;
  end.category = InstructionClass::kControl;
  end.line = line_;
  emit(end);
  resolve_labels();
  function_.frame_bytes = (next_ + 63) / 64 * 64;
}

void Decoder::statement(std::string_view first) {
  if (first == ".loc") return location();
  if (first == ".reg" || first == ".local" || first == ".shared" || first == ".param") return declare(first);
  if (first == ".pragma") {
    s_.until(';');
    return;
  }
  if (s_.peek() == ':') {
    s_.expect(':');
    labels_[first] = static_cast<i32>(function_.code.size());
    const size_t at = s_.position();
    if (s_.peek() != '.') return;
    const std::string_view directive = s_.word();
    if (directive == ".callprototype" || directive == ".calltargets")
      fail("indirect calls are not supported");
    if (directive != ".branchtargets") return s_.seek(at);
    tables_[first] = static_cast<i32>(table_labels_.size());
    auto& list = table_labels_.emplace_back();
    do list.push_back(s_.word());
    while (s_.accept(','));
    return;
  }
  instruction(first);
}

// ".loc file line column [, function_name label, inlined_at file line column]". The place of the call has had
// a .loc of its own, or is the kernel's own text.
void Decoder::location() {
  const auto read = [this] {
    const u64 file = s_.number(), line = s_.number(), column = s_.number();
    return std::array<u32, 3>{static_cast<u32>(file), static_cast<u32>(line), static_cast<u32>(column)};
  };
  const auto here = read();
  u32 outermost = 0;
  if (const size_t at = s_.position(), call = s_.rest_of_line().find("inlined_at ");
      call != std::string_view::npos) {
    const size_t end = s_.position();
    s_.seek(at + call);
    s_.word();
    const auto [found, fresh] = places_.try_emplace(read(), 0);
    if (fresh) {
      program_.lines.push_back({found->first[0], found->first[1]});
      found->second = static_cast<u32>(program_.lines.size() - 1);
    }
    const u32 further = program_.lines[found->second].outermost;
    outermost = further != 0 ? further : found->second;
    s_.seek(end);
  }
  program_.lines.push_back({here[0], here[1], outermost});
  line_ = places_[here] = static_cast<u32>(program_.lines.size() - 1);
}

void Decoder::define(std::string_view name, u32 width) {
  names_.emplace_back(name);
  const u32 offset = allocate(width);
  scopes_.back()[names_.back()] = {offset, width};
  function_.slots.push_back({offset, width});
}

void Decoder::declare(std::string_view space) {
  const Declaration d = scan_declaration(s_);
  if (space == ".reg") {
    const u32 width = d.type == "pred" ? 0 : d.element_bytes;
    if (width == 0 && d.type != "pred") fail("registers of type ." + d.type + " are not supported");
    for (int i = 0; i < d.range; ++i) define(d.name + std::to_string(i), width);
    if (d.range < 0) define(d.name, width);
    while (s_.accept(',')) define(s_.word(), width);
    return;
  }
  names_.push_back(d.name);
  if (space == ".param") {
    const Area area{allocate_bytes(32 * d.bytes(), 64), d.bytes()};
    areas_[names_.back()] = area;
    function_.slots.push_back(area);
  } else if (space == ".local") {
    function_.local_bytes = (function_.local_bytes + d.align - 1) / d.align * d.align;
    locals_[names_.back()] = function_.local_bytes;
    function_.local_bytes += d.bytes();
  } else {
    program_.shared_bytes = (program_.shared_bytes + d.align - 1) / d.align * d.align;
    program_.shared_offsets[d.name] = program_.shared_bytes;
    program_.shared_bytes += d.bytes();
  }
}

u32 Decoder::allocate_bytes(u32 bytes, u32 align) {
  next_ = (next_ + align - 1) / align * align;
  const u32 offset = next_;
  next_ += bytes;
  return offset;
}
u32 Decoder::allocate(u32 width) {
  return width == 0 ? allocate_bytes(4, 4) : allocate_bytes(32 * width, 64);
}

u32 Decoder::constant(u64 bits, u32 width) {
  if (width < 8) bits &= (u64{1} << (8 * width)) - 1;
  const auto [slot, fresh] = constant_slots_.try_emplace({bits, width}, 0);
  if (fresh) {
    slot->second = allocate(width);
    function_.constants.push_back({slot->second, static_cast<u8>(width), bits});
  }
  return slot->second;
}

const Decoder::Register* Decoder::find(std::string_view name) const {
  for (size_t i = scopes_.size(); i-- > 0;) {
    if (const auto found = scopes_[i].find(name); found != scopes_[i].end()) return &found->second;
  }
  return nullptr;
}

u32 Decoder::width_of(std::string_view word) const {
  const Register* r = find(word);
  return r == nullptr ? kNone : r->width;
}

std::optional<u64> Decoder::variable_address(std::string_view name) {
  if (const auto found = program_.shared_offsets.find(name); found != program_.shared_offsets.end())
    return found->second;
  if (const auto found = module_.shared.find(name); found != module_.shared.end() && !found->second.dynamic) {
    const SharedVariable& v = found->second;
    program_.shared_bytes = (program_.shared_bytes + v.align - 1) / v.align * v.align;
    const u64 offset = program_.shared_bytes;
    program_.shared_offsets.emplace(name, program_.shared_bytes);
    program_.shared_bytes += v.bytes;
    return offset;
  }
  if (const auto found = module_.variables.find(name); found != module_.variables.end())
    return found->second.address;
  if (text_.entry) {
    u32 offset = 0;
    for (const ParamDeclaration& p : text_.params) {
      offset = (offset + p.align - 1) / p.align * p.align;
      if (p.name == name) return offset;
      offset += p.bytes;
    }
  }
  return std::nullopt;
}

u32 Decoder::value(std::string_view word, u32 width) {
  if (const Register* r = find(word)) {
    if (r->width < width) fail("register " + std::string(word) + " is too narrow");
    return r->offset;
  }
  if (word == "WARP_SZ") return constant(32, width);
  if (word[0] == '%') {
    for (u8 i = 0; i < std::size(kSpecialNames); ++i) {
      if (word != kSpecialNames[i]) continue;
      const auto [slot, fresh] = special_slots_.try_emplace(i, 0);
      if (fresh) {
        slot->second = allocate(4);
        function_.specials.push_back({slot->second, i});
      }
      return slot->second;
    }
    fail("special register " + std::string(word) + " is not supported");
  }
  if (word.size() > 2 && word[0] == '0' && std::strchr("fFdD", word[1])) {
    return constant(std::strtoull(std::string(word.substr(2)).c_str(), nullptr, 16), width);
  }
  if (const auto found = module_.shared.find(word); found != module_.shared.end() && found->second.dynamic) {
    const u32 slot = allocate(width);
    program_.dynamic_constants.emplace_back(&function_, function_.constants.size());
    function_.constants.push_back({slot, static_cast<u8>(width), 0});
    return slot;
  }
  if (const auto found = locals_.find(word); found != locals_.end()) {
    const u32 slot = allocate(width);
    function_.locals.push_back({slot, static_cast<u8>(width), found->second});
    return slot;
  }
  if (const auto address = variable_address(word)) return constant(*address, width);
  std::string text(word);
  char* end = nullptr;
  const u64 bits = text[0] == '-' ? static_cast<u64>(std::strtoll(text.c_str(), &end, 0))
                                  : std::strtoull(text.c_str(), &end, 0);
  if (end == text.c_str() || (*end != '\0' && *end != 'U')) fail("operand " + text + " is not supported");
  return constant(bits, width);
}

u32 Decoder::result(std::string_view word, u32 width) {
  if (word == "_") return allocate(width);
  const Register* r = find(word);
  if (r == nullptr) fail(std::string(word) + " is not a register");
  if (r->width < width) fail("register " + std::string(word) + " is too narrow");
  return r->offset;
}

u32 Decoder::predicate(const Argument& argument) {
  const u32 width = width_of(argument.word);
  if (width != 0) fail(std::string(argument.word) + " is not a predicate");
  const u32 slot = find(argument.word)->offset;
  if (!argument.negated) return slot;
  Insn negate;
  negate.category = InstructionClass::kPredicate;
  negate.op[0] = allocate(0);
  negate.op[1] = slot;
  negate.run = negate_predicate;
  negate.line = line_;
  emit(negate);
  return negate.op[0];
}

u32 Decoder::predicate_or_constant(const Argument& argument) {
  if (width_of(argument.word) == 0) return predicate(argument);
  const bool yes = std::strtoll(std::string(argument.word).c_str(), nullptr, 0) != 0;
  const u32 slot = allocate(0);
  function_.constants.push_back({slot, 0, yes != argument.negated ? kFullMask : 0u});
  return slot;
}

void Decoder::add_operands(Insn& insn, std::span<const u32> operands) {
  insn.extra = static_cast<u32>(function_.operands.size());
  function_.operands.insert(function_.operands.end(), operands.begin(), operands.end());
}

// op[1]: the register with the base, or kNone; imm: the rest. Frame areas become Space::kFrame with their
// place in op[1] and the bytes from lane to lane in op[2].
void Decoder::address(Insn& insn, const Argument& argument) {
  insn.imm = argument.offset;
  const std::string_view base = argument.word;
  if (const auto area = areas_.find(base); insn.space == Space::kParam && area != areas_.end()) {
    insn.space = Space::kFrame;
    insn.op[1] = area->second.offset;
    insn.op[2] = area->second.bytes;
    return;
  }
  if (const Register* r = find(base)) {
    insn.op[1] = r->offset;
    insn.address_bytes = static_cast<u8>(r->width);
    return;
  }
  insn.address_bytes = 8;
  insn.op[1] = value(base, 8);
}

std::vector<Argument> Decoder::arguments() {
  std::vector<Argument> list;
  if (s_.peek() == ';') return list;
  do list.push_back(argument());
  while (s_.accept(','));
  return list;
}

Argument Decoder::argument() {
  Argument a;
  if (s_.accept('{')) {
    a.kind = Argument::Kind::kList;
    while (!s_.accept('}')) {
      a.elements.push_back(s_.word());
      s_.accept(',');
    }
    return a;
  }
  if (s_.accept('(')) {
    a.kind = Argument::Kind::kGroup;
    while (!s_.accept(')')) {
      a.elements.push_back(s_.word());
      s_.accept(',');
    }
    return a;
  }
  if (s_.accept('[')) {
    a.kind = Argument::Kind::kAddress;
    a.word = s_.word();
    while (s_.accept('+')) a.offset += std::strtoll(std::string(s_.word()).c_str(), nullptr, 0);
    s_.expect(']');
    return a;
  }
  if (s_.accept('!')) a.negated = true;
  a.word = s_.word();
  if (a.word[0] == '!') {
    a.negated = true;
    a.word.remove_prefix(1);
  }
  if (s_.accept('|')) {
    a.kind = Argument::Kind::kPair;
    a.elements = {a.word, s_.word()};
  }
  return a;
}

void Decoder::instruction(std::string_view first) {
  Insn insn;
  insn.line = line_;
  if (first == "@") {
    insn.guard_negated = s_.accept('!');
    std::string_view name = s_.word();
    if (name[0] == '!') {
      insn.guard_negated = true;
      name.remove_prefix(1);
    }
    insn.guard = result(name, 0);
    first = s_.word();
  }
  Opcode opcode;
  opcode.text = first;
  for (size_t at = 0; at <= first.size();) {
    const size_t end = std::min(first.find('.', at), first.size());
    opcode.parts.push_back(first.substr(at, end - at));
    at = end + 1;
  }
  opcode_ = first;
  const std::string_view name = opcode.name();
  if (name == "bra" || name == "brx") return branch(insn, opcode, arguments());
  if (name == "call") return call(insn);
  if (name == "ret" || name == "exit") {
    insn.flow = name == "exit" || text_.entry ? Flow::kExit : Flow::kReturn;
    insn.category = InstructionClass::kControl;
    return emit(insn);
  }
  const std::vector<Argument> args = arguments();
  constexpr decltype(&select_integer) kGroups[] = {
      select_integer, select_float,  select_half,   select_move,       select_compare,
      select_convert, select_memory, select_atomic, select_collective, select_matrix};
  for (const auto select : kGroups) {
    Insn chosen = insn;
    opcode.asked = 0;
    if (!select(*this, chosen, opcode, args)) continue;
    if (const std::string_view odd = opcode.unknown(); !odd.empty())
      fail("modifier ." + std::string(odd) + " is not supported");
    return emit(chosen);
  }
  fail("this instruction is not supported");
}

void Decoder::branch(Insn& insn, const Opcode& opcode, const std::vector<Argument>& args) {
  insn.category = InstructionClass::kControl;
  if (opcode.name() == "brx") {
    insn.flow = Flow::kBranchIndexed;
    insn.op[0] = value(args.at(0), 4);
    const auto table = tables_.find(args.at(1).word);
    if (table == tables_.end()) fail("branch table " + std::string(args[1].word) + " is not known");
    insn.target = table->second;
  } else {
    insn.flow = Flow::kBranch;
    branches_.emplace_back(function_.code.size(), args.at(0).word);
  }
  emit(insn);
}

// call{.uni} (results), function, (arguments);
void Decoder::call(Insn& insn) {
  std::vector<Argument> args = arguments();
  Call call;
  size_t next = 0;
  const auto areas = [&](const Argument& group) {
    std::vector<Area> list;
    for (const std::string_view name : group.elements) {
      const auto area = areas_.find(name);
      if (area == areas_.end()) fail("parameter " + std::string(name) + " is not known");
      list.push_back(area->second);
    }
    return list;
  };
  if (args.at(next).kind == Argument::Kind::kGroup) call.results = areas(args[next++]);
  const std::string_view callee = args.at(next++).word;
  if (next < args.size() && args[next].kind == Argument::Kind::kGroup) call.arguments = areas(args[next]);
  insn.flow = Flow::kCall;
  insn.category = InstructionClass::kControl;
  insn.target = static_cast<i32>(function_.calls.size());
  const auto text = module_.functions.find(callee);
  if (text != module_.functions.end() && !text->second.body.empty()) {
    call.callee = function_of(module_, program_, text->second);
  } else if (is_builtin(callee)) {
    call.builtin = callee;
  } else {
    fail(find(callee) != nullptr ? "indirect calls are not supported"
                                 : "function " + std::string(callee) + " has no body in this module");
  }
  function_.calls.push_back(std::move(call));
  emit(insn);
}

void Decoder::resolve_labels() {
  const auto target = [&](std::string_view label) {
    const auto found = labels_.find(label);
    if (found == labels_.end())
      throw PtxError("PTX: label " + std::string(label) + " of " + text_.name + " is not known");
    return found->second;
  };
  for (const auto& [at, label] : branches_) function_.code[at].target = target(label);
  for (const auto& labels : table_labels_) {
    auto& table = function_.tables.emplace_back();
    for (const std::string_view label : labels) table.push_back(target(label));
  }
}

void Decoder::fail(const std::string& problem) const {
  Insn here;
  here.line = line_;
  const std::string where = program_.where(here);
  throw PtxError("simulated GPU: " + problem + ": \"" + std::string(opcode_) + "\" in " + text_.name
                 + (where.empty() ? "" : " at " + where));
}

bool is_builtin(std::string_view name) { return name == "vprintf" || name == "__assertfail"; }

// The kernel's own copy of a function, decoded when it is first met; known before its body is read, so that
// it may call itself.
Function* function_of(const ModuleText& module, Program& program, const FunctionText& text) {
  for (const auto& f : program.functions) {
    if (f->name == text.name) return f.get();
  }
  Function* function = program.functions.emplace_back(std::make_unique<Function>()).get();
  function->name = text.name;
  Decoder(module, program, text, *function).run();
  return function;
}

namespace {
bool is_memory(InstructionClass c) {
  switch (c) {
    case InstructionClass::kGlobalLoad:
    case InstructionClass::kGlobalStore:
    case InstructionClass::kSharedLoad:
    case InstructionClass::kSharedStore:
    case InstructionClass::kAtomic:
    case InstructionClass::kAsyncCopy:
      return true;
    default:
      return false;
  }
}
}  // namespace

namespace {
// Branches back to one place are one loop.
void find_loops(const Function& function, std::vector<Loop>& loops) {
  std::map<i32, i32> last_by_target;
  for (i32 at = 0; at < static_cast<i32>(function.code.size()); ++at) {
    const Insn& insn = function.code[static_cast<size_t>(at)];
    if (insn.flow == Flow::kBranch && insn.target <= at) last_by_target[insn.target] = at;
  }
  const size_t before = loops.size();
  for (const auto& [first, last] : last_by_target)
    loops.push_back(
        {function.first_count + static_cast<u32>(first), function.first_count + static_cast<u32>(last)});
  std::sort(loops.begin() + static_cast<std::ptrdiff_t>(before), loops.end(),
            [](const Loop& a, const Loop& b) { return a.last < b.last; });
}
}  // namespace

std::unique_ptr<Program> decode_kernel(const ModuleText& module, const FunctionText& kernel) {
  auto program = std::make_unique<Program>();
  program->text = &module;
  program->lines.push_back({});
  program->entry = function_of(module, *program, kernel);
  program->shared_bytes = (program->shared_bytes + 15) / 16 * 16;
  for (const auto& [function, index] : program->dynamic_constants) {
    function->constants[index].value += program->shared_bytes;
  }
  for (const auto& f : program->functions) {
    f->first_count = program->instructions;
    for (Insn& insn : f->code) insn.number = program->instructions++;
    find_loops(*f, program->loops);
  }
  for (const auto& f : program->functions) {
    for (const Insn& insn : f->code) {
      const bool copies = insn.category == InstructionClass::kAsyncCopy,
                 shared = copies || insn.space == Space::kShared || insn.space == Space::kGeneric,
                 global = copies || insn.space == Space::kGlobal || insn.space == Space::kGeneric;
      if (insn.bytes == 0 || !is_memory(insn.category)) continue;
      const u32 vector = insn.category == InstructionClass::kAtomic || copies ? 1 : insn.count;
      const auto grain = static_cast<u32>(std::countr_zero(insn.bytes * vector));
      if (shared) program->shared_grain = std::min(program->shared_grain, grain);
      if (global) program->global_grain = std::min(program->global_grain, grain);
    }
  }
  static std::atomic<u64> serials{0};
  program->serial = ++serials;
  program->local_bytes = program->functions.size() > 1 ? kStackBytes : program->entry->local_bytes;
  return program;
}

}  // namespace simgpu
