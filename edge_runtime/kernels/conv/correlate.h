// Products of weights with windows, read from a Field (or from the image itself): the core of conv2d and conv2d_dx.
#ifndef HEDGEROW_CONV_CORRELATE_H_
#define HEDGEROW_CONV_CORRELATE_H_

#include "conv/field.h"
#include "gemm/tile.h"

namespace hedgerow {
namespace {

constexpr Index kMostFieldTaps = kDepth;
// Where the outputs' rows are no multiple of a vector, a group of panels is computed flat, gaps between the rows and
// all, and then copied.
constexpr Index kGroupVectors = 32 * kTileVectors;
constexpr Index kFlatFloats = kGroupVectors * kWidth;
// What a group of panels reads should stay in half of a small L1 cache.
constexpr Index kGroupFloats = 3 * 1024;

// One product: out[m][q][r] = the sum over `channels` and taps of
//   w[m w_row + channel w_channel + tap.a] field[channel field_channel + tap.b + q pitch + r]
struct Correlation {
  Index M;
  Index w_row, w_channel;
  Index field_channel, pitch;
  Index columns;             // of one output row
  Index out_plane, out_row;  // strides of out
  // Columns stand sw apart in out. With `pair` they stand side by side, `columns` in all: the even ones are one
  // product, the odd ones another, with its own taps and odd_field further on: the phases of a stride of 2.
  Index sw;
  bool pair;
  Index odd_field;
  // The field is the image itself, whose next columns are too far away for the CPU to foresee.
  bool far;
};

// The kernel's places that a product sums over.
struct Taps {
  Index count;
  Step at[kMostFieldTaps];

  // For some channels; returns how many.
  Index Steps(const Correlation& s, Index channels, Step* steps) const {
    Index depth = 0;
    for (Index c = 0; c < channels; ++c) {
      for (Index t = 0; t < count; ++t) steps[depth++] = {c * s.w_channel + at[t].a, c * s.field_channel + at[t].b};
    }
    return depth;
  }
};

// y[j] = finished sums[j]
void FinishRow(Index n, const float* sums, float bias, const Finish& finish, float* y) {
  ForVectors(n, [&](Index j, Index k) {
    const V before = finish.add ? LoadPart(y + j, k) : Splat(bias);
    StorePart(y + j, Activated(finish.act, before + LoadPart(sums + j, k)), k);
  });
}

// Outputs from the flat sums [first, first + n) of one strip; n is a multiple of kWidth, and what is past the last row
// is left out.
void CopyFlat(const Correlation& s, Index rows, Index bands_rows, Index first, Index n, const float* flat,
              const Finish& finish, float* out) {
  for (Index m = 0; m < rows; ++m, flat += kFlatFloats, out += s.out_plane) {
    const float bias = finish.bias ? finish.bias[m] : 0.f;
    for (Index q = first / s.pitch; q < bands_rows && q * s.pitch < first + n; ++q) {
      float* y = out + q * s.out_row;
      const Index start = q * s.pitch, from = Max(first, start), end = Min(first + n, start + s.columns);
      if (s.sw == 1) {
        if (from < end) FinishRow(end - from, flat + from - first, bias, finish, y + from - start);
        continue;
      }
      for (Index j = from; j < end; ++j) {
        float& element = y[(j - start) * s.sw];
        element = Activated(finish.act, Splat((finish.add ? element : bias) + flat[j - first]))[0];
      }
    }
  }
}

// The vectors of `rows` rows of outputs, one after another: row by row, or flat.
struct Vectors {
  const Correlation& s;
  Index rows;
  bool flat;
  Index row_vectors, count;

  Vectors(const Correlation& product, Index output_rows) : s(product), rows(output_rows) {
    const Index columns = s.pair ? (s.columns + 1) / 2 : s.columns;
    row_vectors = (columns + kWidth - 1) / kWidth;
    flat = !s.pair && (s.sw != 1 || row_vectors * kWidth > Max(s.pitch, columns));
    count = flat ? ((rows - 1) * s.pitch + columns + kWidth - 1) / kWidth : rows * row_vectors;
  }

  // Slots for vectors [first, first + n), and one more tile's that write nothing.
  void Fill(Index first, Index n, Slot* slots) const {
    Index row = flat ? 0 : first / row_vectors, column = flat ? first : first - row * row_vectors;
    for (Index i = 0; i < n; ++i, ++column) {
      if (flat) {
        slots[i] = {column * kWidth, i * kWidth, kWidth};
        continue;
      }
      if (column == row_vectors) {
        column = 0;
        ++row;
      }
      const Index at = column * kWidth;
      slots[i] = {row * s.pitch + at, row * s.out_row + at, Min(kWidth, s.columns - at)};
      if (s.pair) slots[i] = {slots[i].from, i * kWidth, kWidth};
    }
    for (Index i = n; i < n + kTileVectors; ++i) slots[i] = {slots[n - 1].from, slots[n - 1].to, 0};
  }
};

// Outputs from the sums of a pair's vectors [first, first + n), the odd columns' kTileRows rows behind the even ones'.
void StorePairs(const Vectors& vectors, Index strip, Index first, Index n, const float* even, const Finish& finish,
                float* out) {
  const Correlation& s = vectors.s;
  const Pairs pairs;
  for (Index m = 0; m < strip; ++m, even += kFlatFloats, out += s.out_plane) {
    const float *odd = even + kTileRows * kFlatFloats, bias = finish.bias ? finish.bias[m] : 0.f;
    Index row = first / vectors.row_vectors, column = first % vectors.row_vectors * 2 * kWidth;
    for (Index i = 0; i < n * kWidth; i += kWidth, column += 2 * kWidth) {
      if (column >= s.columns) {
        column = 0;
        ++row;
      }
      float* y = out + row * s.out_row + column;
      const V a = Load(even + i), b = Load(odd + i);
      const V halves[2] = {Shuffle(a, b, pairs.low), Shuffle(a, b, pairs.high)};
      for (Index h = 0; h < 2; ++h, y += kWidth) {
        const Index left = Min(kWidth, s.columns - column - h * kWidth);
        if (left <= 0) break;
        const V before = finish.add ? LoadPart(y, left) : Splat(bias);
        StorePart(y, Activated(finish.act, before + halves[h]), left);
      }
    }
  }
}

// `rows` rows of outputs, over channels that make at most kDepth steps. `other`: the odd columns' taps, for a pair.
void CorrelateBand(const Correlation& s, Index channels, const Taps& taps, const Taps* other, const float* w,
                   const float* field, Index rows, const Finish& finish, float* out) {
  Step steps[kDepth], odd_steps[kDepth];
  const Index depth = taps.Steps(s, channels, steps), odd_depth = other ? other->Steps(s, channels, odd_steps) : 0;
  const Vectors vectors(s, rows);
  Index group = Min(kFlatFloats, kGroupFloats / channels) / kTileColumns;
  const Index deepest = Max(depth, odd_depth);  // either side of a pair may have more taps
  if (deepest > 0) group = Min(group, TileOperands::kMostFloats / (kTileColumns * deepest));
  group = kTileVectors * Max(1, group);
  alignas(64) float sums[2 * kTileRows * kFlatFloats];
  Slot slots[kGroupVectors + kTileVectors];
  TileOperands even(depth, steps, w, s.w_row), odd(odd_depth, odd_steps, w, s.w_row);
  ForRowBlocks(s.M, [&](Index first_row, Index block_rows) {
    even.SetRows(first_row, block_rows);
    if (s.pair) odd.SetRows(first_row, block_rows);
    for (Index first = 0; first < vectors.count; first += group) {
      const Index n = Min(vectors.count - first, group);
      vectors.Fill(first, n, slots);
      for (Index c = 0; s.far && c < channels; ++c) {
        for (Index v = 0; v < n; v += 2) __builtin_prefetch(field + c * s.field_channel + (first + group + v) * kWidth);
      }
      even.SetVectors(field, slots, n);
      if (s.pair) odd.SetVectors(field + s.odd_field, slots, n);
      ForStrips(block_rows, [&](Index m, Index strip) {
        const Finish end{finish.bias ? finish.bias + first_row + m : nullptr, finish.add, finish.act}, raw{};
        float* y = out + (first_row + m) * s.out_plane;
        if (!vectors.flat && !s.pair) {
          for (Index v = 0; v < n; v += kTileVectors) even.Tile(m, strip, v, end, y, s.out_plane);
          return;
        }
        for (Index v = 0; v < n; v += kTileVectors) {
          even.Tile(m, strip, v, raw, sums, kFlatFloats);
          if (s.pair) odd.Tile(m, strip, v, raw, sums + kTileRows * kFlatFloats, kFlatFloats);
        }
        if (s.pair) return StorePairs(vectors, strip, first, n, sums, end, y);
        CopyFlat(s, strip, rows, first * kWidth, n * kWidth, sums, end, y);
      });
    }
  });
}

// f(first row, rows, taps) for runs of output rows that meet the same rows of the kernel inside the image: `inside`
// gives those of one output row. The others would be multiplied by zeros. A row too narrow to fill a tile stays with
// its neighbours.
template <typename Inside, typename F>
void ForTapRows(const Correlation& s, const Taps& taps, Index kernel_rows, Index first, Index last, Inside inside,
                F f) {
  if (s.pair || Vectors(s, 1).flat || Vectors(s, 1).count % kTileVectors != 0) return f(first, last - first, taps);
  const Index row_taps = kernel_rows ? taps.count / kernel_rows : 0;
  for (Index q = first, end; q < last; q = end) {
    const Span rows = inside(q);
    for (end = q + 1; end < last; ++end) {
      const Span next = inside(end);
      if (next.first != rows.first || next.last != rows.last) break;
    }
    if (rows.last - rows.first == kernel_rows) {
      f(q, end - q, taps);
      continue;
    }
    Taps some{(rows.last - rows.first) * row_taps, {}};
    for (Index t = 0; t < some.count; ++t) some.at[t] = taps.at[rows.first * row_taps + t];
    f(q, end - q, some);
  }
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_CONV_CORRELATE_H_
