// Splits a PTX module into kernels, module variables and source files; bodies are decoded on first launch.
#include <cstdlib>
#include <cstring>

#include "program.h"

namespace simgpu {
namespace {

void strip_comments(std::string& text) {
  std::string out;
  out.reserve(text.size());
  for (size_t i = 0; i < text.size(); ++i) {
    if (text.compare(i, 2, "//") == 0) {
      while (i < text.size() && text[i] != '\n') ++i;
      out += '\n';
    } else if (text.compare(i, 2, "/*") == 0) {
      i = text.find("*/", i);
      if (i == std::string::npos) break;
      ++i;
    } else {
      out += text[i];
    }
  }
  text.swap(out);
}

std::vector<std::string> words(std::string_view text) {
  std::vector<std::string> out;
  std::string word;
  for (char c : text) {
    if (isspace(static_cast<unsigned char>(c))) {
      if (!word.empty()) out.push_back(std::move(word)), word.clear();
    } else {
      word += c;
    }
  }
  if (!word.empty()) out.push_back(word);
  return out;
}

// ".param .u64 name", ".param .align 16 .b8 name[128]", ".shared .align 4 .b8 s[64]"
struct Declaration {
  std::string name;
  u32 align = 1, size = 0;
};
Declaration parse_declaration(std::string_view text) {
  Declaration d;
  std::vector<std::string> w = words(text);
  u32 element = 0;
  for (size_t i = 0; i + 1 < w.size(); ++i) {
    if (w[i] == ".align") d.align = atoi(w[i + 1].c_str());
    if (w[i] == ".ptr") break;
    if (!element) element = type_bytes(w[i].substr(w[i].find_last_of('.') + 1));
  }
  d.name = w.empty() ? "" : w.back();
  if (d.align < element) d.align = element;
  d.size = element;
  const size_t bracket = d.name.find('[');
  if (bracket != std::string::npos) {
    d.size = element * strtoul(d.name.c_str() + bracket + 1, nullptr, 10);
    d.name.resize(bracket);
  }
  return d;
}

void parse_entry(Module& module, std::string_view text, size_t& at) {
  const size_t name = text.find_first_not_of(" \t\n", at + 6), name_end = text.find_first_of(" (\n\t", name);
  Kernel k;
  k.name = text.substr(name, name_end - name);
  k.module = &module;
  const size_t brace = text.find('{', name_end), open = text.find('(', name_end);
  if (open < brace) {
    std::string_view list = text.substr(open + 1, text.find(')', open) - open - 1);
    while (list.find(".param") != std::string_view::npos) {
      const size_t comma = std::min(list.find(','), list.size());
      Declaration d = parse_declaration(list.substr(0, comma));
      k.param_bytes = (k.param_bytes + d.align - 1) / d.align * d.align;
      k.params.push_back({d.name, k.param_bytes, d.size});
      k.param_bytes += d.size;
      list.remove_prefix(std::min(comma + 1, list.size()));
    }
  }
  size_t end = brace;
  for (int depth = 0; end < text.size(); ++end) {
    if (text[end] == '{') ++depth;
    if (text[end] == '}' && --depth == 0) break;
  }
  k.body = text.substr(brace + 1, end - brace - 1);
  at = end;
  module.kernels.emplace(k.name, std::move(k));
}

void parse_variable(Module& module, std::string_view statement) {
  std::string_view head = statement.substr(0, statement.find('='));
  Declaration d = parse_declaration(head);
  if (head.find(".shared") != std::string_view::npos) {
    if (head.find(".extern") != std::string_view::npos) {
      module.dynamic_shared.push_back(d.name);
    } else {
      module.shared[d.name] = d.size;
    }
    return;
  }
  auto* data = static_cast<u8*>(device_malloc(std::max<u32>(d.size, 1), "__device__ variable", kInitialised));
  const size_t list = statement.find('{');
  if (list != std::string_view::npos) {
    std::vector<std::string> head_words = words(head);
    int bytes = 1;
    for (const std::string& w : head_words) {
      if (w[0] == '.' && type_bytes(std::string_view(w).substr(1))) bytes = type_bytes(std::string_view(w).substr(1));
    }
    u32 offset = 0;
    const char* p = statement.data() + list + 1;
    while (*p && *p != '}' && offset + bytes <= d.size) {
      char* next = nullptr;
      const u64 value = p[0] == '0' && (p[1] == 'f' || p[1] == 'd' || p[1] == 'F' || p[1] == 'D')
                            ? strtoull(p + 2, &next, 16)
                            : strtoull(p, &next, 0);
      if (next == p || next == p + 2) throw PtxError("initialiser of " + d.name + " is not a list of numbers");
      memcpy(data + offset, &value, bytes);
      offset += bytes;
      p = next;
      while (*p == ',' || isspace(static_cast<unsigned char>(*p))) ++p;
    }
  } else if (statement.find('=') != std::string_view::npos) {
    const std::string value(statement.substr(statement.find('=') + 1));
    const char* p = value.c_str() + strspn(value.c_str(), " \t\n");
    const bool real = p[0] == '0' && strchr("fFdD", p[1]) && p[1];
    const u64 bits = real ? strtoull(p + 2, nullptr, 16) : strtoull(p, nullptr, 0);
    memcpy(data, &bits, std::min<u32>(d.size, 8));
  }
  module.variables[d.name] = {reinterpret_cast<u64>(data), d.size};
}

}  // namespace

int type_bytes(std::string_view type) {
  if (type == "f16x2" || type == "bf16x2") return 4;
  if (type == "f16" || type == "bf16") return 2;
  if (type.size() < 2 || !strchr("bsuf", type[0])) return 0;
  const int bits = atoi(std::string(type.substr(1)).c_str());
  return bits == 8 || bits == 16 || bits == 32 || bits == 64 ? bits / 8 : 0;
}

std::unique_ptr<Module> parse_module(std::string ptx) {
  auto module = std::make_unique<Module>();
  strip_comments(ptx);
  module->ptx = std::move(ptx);
  std::string_view text = module->ptx;
  for (size_t i = 0; i < text.size(); ++i) {
    if (isspace(static_cast<unsigned char>(text[i]))) continue;
    if (text.compare(i, 8, ".section") == 0) {
      i = std::min(text.find('}', i), text.size());
      continue;
    }
    const size_t line_end = std::min(text.find('\n', i), text.size());
    if (text.compare(i, 5, ".file") == 0) {
      const size_t quote = text.find('"', i);
      module->files[atoi(text.data() + i + 5)] = text.substr(quote + 1, text.find('"', quote + 1) - quote - 1);
      i = line_end;
    } else if (text.compare(i, 8, ".version") == 0 || text.compare(i, 7, ".target") == 0 ||
               text.compare(i, 13, ".address_size") == 0) {
      i = line_end;
    } else {
      const size_t stop = text.find_first_of(";{", i), entry = text.substr(i, stop - i).find(".entry");
      if (entry != std::string_view::npos) {
        i += entry;
        parse_entry(*module, text, i);
      } else if (text.substr(i, stop - i).find(".func") != std::string_view::npos) {
        i = stop;
        if (stop < text.size() && text[stop] == '{') {  // device functions: a call to one is a named failure
          for (int depth = 0; i < text.size(); ++i) {
            if (text[i] == '{') ++depth;
            if (text[i] == '}' && --depth == 0) break;
          }
        }
      } else {
        const size_t end = std::min(text.find(';', i), text.size());
        parse_variable(*module, text.substr(i, end - i));
        i = end;
      }
    }
  }
  return module;
}

}  // namespace simgpu
