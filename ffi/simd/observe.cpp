// Sums over the inputs of a linear, for calibration. A product of two floats is exact in double precision, so that sums
// in one order are the same on every instruction set, fused or not.
#include <algorithm>

#include "kernels_variant.h"

namespace hc::HC_ISA {
namespace {

void squares(const ObserveArgs& a, int first, int last) {
  for (int64_t t = 0; t < a.tokens; t++) {
    const float* x = a.x + t * a.x_stride;
    for (int j = first; j < last; j++) a.sums[j] += static_cast<double>(x[j]) * x[j];
  }
}

// sums[i][j] and sums[j][i] for `rows` values of i and `columns` of j.
void products(const ObserveArgs& a, int first_row, int rows, int first_column, int columns) {
  constexpr int COLUMNS = 16;
  for (int column = first_column; column < first_column + columns; column += COLUMNS) {
    const int n = std::min(COLUMNS, first_column + columns - column);
    double sums[OBSERVE_ROWS][COLUMNS] = {};
    const auto at = [&](int i, int j) { return static_cast<int64_t>(first_row + i) * a.width + column + j; };
    for (int i = 0; i < rows; i++) std::copy_n(a.sums + at(i, 0), n, sums[i]);
    for (int64_t t = 0; t < a.tokens; t++) {
      const float* x = a.x + t * a.x_stride;
      // Values that lie beyond the last row or column are multiplied as zeros.
      double left[OBSERVE_ROWS] = {}, right[COLUMNS] = {};
      if (n == COLUMNS) std::copy_n(x + column, COLUMNS, right);
      else std::copy_n(x + column, n, right);
      std::copy_n(x + first_row, rows, left);
      for (int i = 0; i < OBSERVE_ROWS; i++) {
        for (int j = 0; j < COLUMNS; j++) sums[i][j] += left[i] * right[j];
      }
    }
    for (int i = 0; i < rows; i++) {
      std::copy_n(sums[i], n, a.sums + at(i, 0));
      for (int j = 0; j < n; j++) a.sums[static_cast<int64_t>(column + j) * a.width + first_row + i] = sums[i][j];
    }
  }
}

}  // namespace

void observe(const ObserveArgs& a, int64_t begin, int64_t end) {
  for (int64_t item = begin; item < end; item++) {
    if (a.products) {
      const int row = static_cast<int>(item) * OBSERVE_ROWS;
      products(a, row, std::min(OBSERVE_ROWS, a.width - row), row, a.width - row);
    } else {
      const int column = static_cast<int>(item) * OBSERVE_COLUMNS;
      squares(a, column, std::min(a.width, column + OBSERVE_COLUMNS));
    }
  }
}

}  // namespace hc::HC_ISA
