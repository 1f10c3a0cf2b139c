// A band of an image's rows, padded, where tiles read windows as plain vectors.
//
// A strided window becomes a plain one in the image's phases: phase (a, b) holds the padded image's elements
// (i sh + a, j sw + b). Output (oy, ox) and kernel place (k, l) meet at row oy + k/sh and column ox + l/sw of phase
// (k mod sh, l mod sw), so that a place of the kernel is one constant distance for all outputs of the band.
#ifndef HEDGEROW_CONV_FIELD_H_
#define HEDGEROW_CONV_FIELD_H_

#include "conv/geometry.h"
#include "isa/transpose.h"

namespace hedgerow {
namespace {

// Vectors are read past the last element that counts.
constexpr Index kFieldSlack = 4 * kWidth;
constexpr Index kFieldFloats = 12 * 1024;

struct Field {
  Index H, W;            // the image's planes
  Index top, left;       // its padding; less than 0 where the first rows or columns are not wanted
  Index sh, sw;          // strides
  Index kept_h, kept_w;  // the phases that a window meets: the first min(stride, kernel)
  Index rows, pitch;     // of one phase's band

  Index Phase() const { return rows * pitch; }
  Index Channel() const { return kept_h * kept_w * rows * pitch; }

  // `channels` planes from x; row 0 of the band is row `first` of the phases.
  void Fill(const float* x, Index channels, Index first, float* to) const {
    for (Index c = 0; c < channels; ++c, x += H * W) {
      for (Index a = 0; a < kept_h; ++a) {
        const Span inside = Inside(rows, sh, first * sh + a - top, H);
        for (Index b = 0; b < kept_w; ++b, to += Phase()) {
          const Span columns = Inside(pitch, sw, b - left, W);
          const float* from = x + ((first + inside.first) * sh + a - top) * W + columns.first * sw + b - left;
          ZeroFew(inside.first * pitch, to);
          for (Index i = inside.first; i < inside.last; ++i, from += sh * W) {
            // The next plane's rows: too far away for the CPU to foresee.
            for (Index j = 0; j < W; j += 16) __builtin_prefetch(from + H * W + j);
            FillRow(from, columns, to + i * pitch);
          }
          ZeroFew((rows - inside.last) * pitch, to + inside.last * pitch);
        }
      }
    }
    for (Index i = 0; i < kFieldSlack; i += kWidth) Store(to + i, V{});
  }

 private:
  // Whole vectors: what they write past the end is written again by whoever comes next.
  static void ZeroFew(Index n, float* to) {
    for (Index i = 0; i < n; i += kWidth) Store(to + i, V{});
  }

  void FillRow(const float* x, const Span& columns, float* to) const {
    ZeroFew(columns.first, to);
    EverySw(columns.last - columns.first, x, to + columns.first);
    ZeroFew(pitch - columns.last, to + columns.last);
  }

  // to[j] = x[j sw]; reads nothing past the last.
  void EverySw(Index n, const float* x, float* to) const {
    if (n <= 0) return;
    if (sw == 1) return CopyShort(n, x, to);
    Index j = 0;
    if (sw == 2) {
      VI from;  // the second vector starts one element early, to end with the last that is wanted
      for (int i = 0; i < kWidth; ++i) from[i] = 2 * i < kWidth ? 2 * i : 2 * i + 1;
      for (; j + kWidth <= n; j += kWidth) {
        Store(to + j, Shuffle(Load(x + 2 * j), Load(x + 2 * j + kWidth - 1), from));
      }
    }
    for (; j < n; ++j) to[j] = x[j * sw];
  }
};

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_CONV_FIELD_H_
