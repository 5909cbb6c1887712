#pragma once

// A line chart of training and validation loss, as an SVG file that every browser opens.

#include <cstdint>
#include <string>
#include <utility>
#include <vector>

namespace ergon::trainer {

struct Curve {
  std::string name;
  std::string color;                                    // of SVG: "#1f77b4"
  std::vector<std::pair<std::int64_t, double>> points;  // (step, value); NaN and infinity are left out
};

// The chart as SVG text. Curves of more than a thousand points are thinned to the mean of equal pieces.
std::string plot_svg(const std::string& title, const std::string& y_label, const std::vector<Curve>& curves);

}  // namespace ergon::trainer
