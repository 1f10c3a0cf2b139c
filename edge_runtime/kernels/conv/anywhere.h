// Convolutions of any extents, element by element into panels: for windows too large for a Field.
#ifndef HEDGEROW_CONV_ANYWHERE_H_
#define HEDGEROW_CONV_ANYWHERE_H_

#include "conv/geometry.h"
#include "gemm/tile.h"

namespace hedgerow {
namespace {

// c[m ldc + n] = bias[m] + sum over k < depth of a[m outer + a_of(k)] value(k, n), for n < columns.
template <typename A, typename Value>
void ElementProduct(Index M, Index columns, Index depth, const float* a, Index outer, A a_of, Value value,
                    const float* bias, float* c, Index ldc) {
  alignas(64) float panel[kDepth * kTileColumns];
  Step steps[kDepth];
  for (Index n = 0; n < columns; n += kTileColumns) {
    const PanelSlots slots(Min(kTileColumns, columns - n));
    for (Index first = 0; first < depth; first += kDepth) {
      const Index count = Min(kDepth, depth - first);
      for (Index k = 0; k < count; ++k) {
        steps[k] = {a_of(first + k), k * kTileColumns};
        for (Index j = 0; j < kTileColumns; ++j) {
          panel[k * kTileColumns + j] = n + j < columns ? value(first + k, n + j) : 0.f;
        }
      }
      TileOperands operands(count, steps, a, outer);
      operands.SetVectors(panel, slots.slots, kTileVectors);
      ForRowBlocks(M, [&](Index first_row, Index block_rows) {
        operands.SetRows(first_row, block_rows);
        ForStrips(block_rows, [&](Index m, Index rows) {
          m += first_row;
          operands.Tile(m - first_row, rows, 0, Finish{bias ? bias + m : nullptr, first > 0, 0}, c + m * ldc + n, ldc);
        });
      });
    }
  }
}

// Element (row, column) of a plane, 0 outside it.
HEDGEROW_INLINE float At(const float* plane, Index H, Index W, Index row, Index column) {
  return row < 0 || row >= H || column < 0 || column >= W ? 0.f : plane[row * W + column];
}

// The element of group's input x that output `place` meets at kernel place `tap` = (c kh + k) kw + l.
HEDGEROW_INLINE float WindowElement(const Geometry& s, const float* x, Index tap, Index place) {
  const Index l = tap % s.kw, k = tap / s.kw % s.kh, c = tap / (s.kw * s.kh);
  return At(x + c * s.H * s.W, s.H, s.W, place / s.OW * s.sh + k - s.ph, place % s.OW * s.sw + l - s.pw);
}

void ForwardAnywhere(const Geometry& s, const float* x, const float* w, const float* bias, float* y) {
  const Index depth = s.group_channels * s.kh * s.kw;
  ElementProduct(
      s.group_outputs, s.OH * s.OW, depth, w, depth, [](Index k) { return k; },
      [&](Index k, Index place) { return WindowElement(s, x, k, place); }, bias, y, s.OH * s.OW);
}

void DxAnywhere(const Geometry& s, const float* g, const float* w, float* dx) {
  const Index taps = s.kh * s.kw;
  ElementProduct(
      s.group_channels, s.H * s.W, s.group_outputs * taps, w, taps,
      [&](Index k) { return k / taps * s.group_channels * taps + k % taps; },
      [&](Index k, Index place) {
        const Index row = place / s.W + s.ph - k % taps / s.kw, column = place % s.W + s.pw - k % s.kw;
        if (row % s.sh != 0 || column % s.sw != 0) return 0.f;
        return At(g + k / taps * s.OH * s.OW, s.OH, s.OW, row / s.sh, column / s.sw);
      },
      nullptr, dx, s.H * s.W);
}

// Columns [column, last) of dw; images stand image_g and image_x floats apart.
void DwAnywhere(const Geometry& s, Index column, Index last, const float* g, Index image_g, const float* x,
                Index image_x, float* dw) {
  const Index places = s.OH * s.OW;
  ElementProduct(
      s.group_outputs, last - column, s.N * places, g, places,
      [&](Index k) { return k / places * image_g + k % places; },
      [&](Index k, Index tap) { return WindowElement(s, x + k / places * image_x, column + tap, k % places); }, nullptr,
      dw + column, s.group_channels * s.kh * s.kw);
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_CONV_ANYWHERE_H_
