#include "models/trainer/loss_plot.h"

#include <algorithm>
#include <cmath>

#include <spdlog/fmt/fmt.h>

namespace ergon::trainer {
namespace {

constexpr double kWidth = 800, kHeight = 450;
constexpr double kLeft = 70, kRight = 20, kTop = 40, kBottom = 50;  // margins
constexpr std::size_t kMaxPoints = 1000;

std::vector<std::pair<double, double>> thinned(const Curve& curve) {
  std::vector<std::pair<double, double>> finite;
  for (const auto& [step, value] : curve.points) {
    if (std::isfinite(value)) finite.emplace_back(static_cast<double>(step), value);
  }
  if (finite.size() <= kMaxPoints) return finite;
  std::vector<std::pair<double, double>> means;
  for (std::size_t i = 0; i < kMaxPoints; ++i) {
    const std::size_t begin = i * finite.size() / kMaxPoints, end = (i + 1) * finite.size() / kMaxPoints;
    double step = 0, value = 0;
    for (std::size_t k = begin; k < end; ++k) {
      step += finite[k].first;
      value += finite[k].second;
    }
    const double count = static_cast<double>(end - begin);
    means.emplace_back(step / count, value / count);
  }
  return means;
}

// The largest of 1, 2 and 5 times a power of ten that gives at least four ticks over `span`.
double tick_step(double span) {
  const double power = std::pow(10, std::floor(std::log10(span)));
  for (const double factor : {2.0, 1.0, 0.5, 0.2}) {
    if (span / (factor * power) >= 4) return factor * power;
  }
  return power / 10;
}

std::string escaped(const std::string& text) {
  std::string result;
  for (const char c : text) {
    switch (c) {
      case '&':
        result += "&amp;";
        break;
      case '<':
        result += "&lt;";
        break;
      case '>':
        result += "&gt;";
        break;
      case '"':
        result += "&quot;";
        break;
      default:
        result += c;
    }
  }
  return result;
}

struct Range {
  double low = INFINITY, high = -INFINITY;
  void include(double value) {
    low = std::min(low, value);
    high = std::max(high, value);
  }
  // Never empty: a single value gets room on both sides.
  void finish() {
    if (low > high) low = 0, high = 1;
    if (high - low < 1e-9) low -= 0.5, high += 0.5;
  }
};

}  // namespace

std::string plot_svg(const std::string& title, const std::string& y_label, const std::vector<Curve>& curves) {
  Range x, y;
  std::vector<std::vector<std::pair<double, double>>> lines;
  for (const Curve& curve : curves) {
    lines.push_back(thinned(curve));
    for (const auto& [step, value] : lines.back()) {
      x.include(step);
      y.include(value);
    }
  }
  x.finish();
  y.finish();
  const auto to_x = [&](double v) {
    return kLeft + (v - x.low) / (x.high - x.low) * (kWidth - kLeft - kRight);
  };
  const auto to_y = [&](double v) {
    return kHeight - kBottom - (v - y.low) / (y.high - y.low) * (kHeight - kTop - kBottom);
  };

  std::string svg = fmt::format(
      "<svg xmlns=\"http://www.w3.org/2000/svg\" viewBox=\"0 0 {0} {1}\" font-family=\"sans-serif\" "
      "font-size=\"12\">\n"
      "<rect width=\"{0}\" height=\"{1}\" fill=\"white\"/>\n"
      "<text x=\"{2}\" y=\"22\" font-size=\"16\" text-anchor=\"middle\">{3}</text>\n",
      kWidth, kHeight, kWidth / 2, escaped(title));
  const double x_step = tick_step(x.high - x.low), y_step = tick_step(y.high - y.low);
  for (double v = std::ceil(y.low / y_step) * y_step; v <= y.high + 1e-9 * y_step; v += y_step) {
    svg += fmt::format(
        "<line x1=\"{0}\" x2=\"{1}\" y1=\"{2:.1f}\" y2=\"{2:.1f}\" stroke=\"#e0e0e0\"/>"
        "<text x=\"{3}\" y=\"{4:.1f}\" text-anchor=\"end\">{5:.4g}</text>\n",
        kLeft, kWidth - kRight, to_y(v), kLeft - 8, to_y(v) + 4, std::abs(v) < 1e-12 ? 0.0 : v);
  }
  for (double v = std::ceil(x.low / x_step) * x_step; v <= x.high + 1e-9 * x_step; v += x_step) {
    svg += fmt::format("<text x=\"{:.1f}\" y=\"{}\" text-anchor=\"middle\">{:.6g}</text>\n", to_x(v),
                       kHeight - kBottom + 18, v);
  }
  svg += fmt::format(
      "<rect x=\"{0}\" y=\"{1}\" width=\"{2}\" height=\"{3}\" fill=\"none\" stroke=\"#404040\"/>\n"
      "<text x=\"{4}\" y=\"{5}\" text-anchor=\"middle\">step</text>\n"
      "<text x=\"18\" y=\"{6}\" text-anchor=\"middle\" transform=\"rotate(-90 18 {6})\">{7}</text>\n",
      kLeft, kTop, kWidth - kLeft - kRight, kHeight - kTop - kBottom, (kLeft + kWidth - kRight) / 2,
      kHeight - 12, (kTop + kHeight - kBottom) / 2, escaped(y_label));
  for (std::size_t i = 0; i < curves.size(); ++i) {
    std::string points;
    for (const auto& [step, value] : lines[i])
      points += fmt::format("{:.1f},{:.1f} ", to_x(step), to_y(value));
    const double legend_y = kTop + 18 + 18 * static_cast<double>(i);
    svg += fmt::format(
        "<polyline points=\"{0}\" fill=\"none\" stroke=\"{1}\" stroke-width=\"1.5\"/>\n"
        "<line x1=\"{2}\" x2=\"{3}\" y1=\"{4}\" y2=\"{4}\" stroke=\"{1}\" stroke-width=\"3\"/>"
        "<text x=\"{5}\" y=\"{6}\">{7}</text>\n",
        points, curves[i].color, kWidth - kRight - 150, kWidth - kRight - 130, legend_y,
        kWidth - kRight - 124, legend_y + 4, escaped(curves[i].name));
  }
  return svg + "</svg>\n";
}

}  // namespace ergon::trainer
