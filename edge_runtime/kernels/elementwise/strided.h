// copy, binary and reduce: up to six dims, each operand with strides of its own (ops.h).
#ifndef HEDGEROW_ELEMENTWISE_STRIDED_H_
#define HEDGEROW_ELEMENTWISE_STRIDED_H_

#include "elementwise/activation.h"
#include "program/ranges.h"

namespace hedgerow {
namespace {

// The dims of a loop nest, outermost first, with the strides of kOperands operands; dims that every operand walks as
// one are merged, so the last dim is as long as it can be.
template <int kOperands>
struct Nest {
  Nest(Index dims, const int64_t* shape, const int64_t* const (&strides)[kOperands]) {
    for (Index d = 0; d < dims; ++d) {
      if (shape[d] == 1) continue;
      bool merges = rank > 0;
      for (int o = 0; o < kOperands && merges; ++o) {
        merges = stride[o][rank - 1] == static_cast<Index>(strides[o][d] * shape[d]);
      }
      if (!merges) extent[rank++] = 1;
      extent[rank - 1] *= static_cast<Index>(shape[d]);
      for (int o = 0; o < kOperands; ++o) stride[o][rank - 1] = static_cast<Index>(strides[o][d]);
    }
    if (rank == 0) extent[rank++] = 1;
  }

  // f(offset of each operand) at the start of every innermost run, in row-major order.
  template <typename F>
  HEDGEROW_INLINE void ForRuns(F f) const {
    Index at[6] = {}, offset[kOperands] = {};
    for (;;) {
      f(offset);
      Index d = rank - 2;
      for (; d >= 0; --d) {
        for (int o = 0; o < kOperands; ++o) offset[o] += stride[o][d];
        if (++at[d] < extent[d]) break;
        for (int o = 0; o < kOperands; ++o) offset[o] -= stride[o][d] * extent[d];
        at[d] = 0;
      }
      if (d < 0) return;
    }
  }

  Index Run() const { return extent[rank - 1]; }
  Index RunStride(int operand) const { return stride[operand][rank - 1]; }

  Index rank = 0, extent[6] = {}, stride[kOperands][6] = {};
};

template <typename T, typename F>
HEDGEROW_INLINE void CopyRuns(const Nest<2>& nest, const T* x, T* y, F f) {
  const Index n = nest.Run(), sx = nest.RunStride(0), sy = nest.RunStride(1);
  nest.ForRuns([&](const Index* offset) {
    const T* from = x + offset[0];
    T* to = y + offset[1];
    if (sx == 1 && sy == 1) {
      for (Index i = 0; i < n; ++i) to[i] = f(from[i]);
    } else {
      for (Index i = 0; i < n; ++i) to[i * sy] = f(from[i * sx]);
    }
  });
}

Status copy(const Call& call) {
  const int64_t* ints = call.op.ints;
  const Nest<2> nest(call.size(1), ints + 2, {ints + 8, ints + 14});
  const Index x0 = call.size(20), y0 = call.size(21);
  const float scale = call.real(0);
  if (call.size(0) == 1) {
    CopyRuns(nest, call.u8(0) + x0, call.u8(1) + y0, [](uint8_t v) { return v; });
  } else if (call.size(0) == 8) {
    CopyRuns(nest, call.i64(0) + x0, call.i64(1) + y0, [](int64_t v) { return v; });
  } else if (scale == 1) {
    CopyRuns(nest, call.f32(0) + x0, call.f32(1) + y0, [](float v) { return v; });
  } else {
    CopyRuns(nest, call.f32(0) + x0, call.f32(1) + y0, [=](float v) { return scale * v; });
  }
  return kOk;
}

template <typename F>
HEDGEROW_INLINE void BinaryRuns(const Call& call, const Nest<3>& nest, const float* a, const float* b, float* y, F f) {
  const Index n = nest.Run(), sa = nest.RunStride(0), sb = nest.RunStride(1);
  if (nest.rank == 1 && sa == 1 && sb == 1) {
    return ForRanges(call, n, 0.2, kLine, [=](Index first, Index last) {
      Map(last - first, a + first, b + first, y + first, f);
    });
  }
  nest.ForRuns([&](const Index* offset) {
    const float *p = a + offset[0], *q = b + offset[1];
    float* out = y + offset[2];
    if (sa == 1 && sb == 1) {
      Map(n, p, q, out, f);
    } else if (sa == 1 && sb == 0) {
      const V other = Splat(*q);
      Map(n, p, out, [=](V v) HEDGEROW_INLINE_BODY { return f(v, other); });
    } else if (sa == 0 && sb == 1) {
      const V other = Splat(*p);
      Map(n, q, out, [=](V v) HEDGEROW_INLINE_BODY { return f(other, v); });
    } else {
      for (Index i = 0; i < n; ++i) out[i] = f(Splat(p[i * sa]), Splat(q[i * sb]))[0];
    }
  });
}

Status binary(const Call& call) {
  const int64_t* ints = call.op.ints;
  int64_t ys[6], next = 1;
  for (Index d = call.size(1) - 1; d >= 0; --d) {
    ys[d] = next;
    next *= ints[2 + d];
  }
  const Nest<3> nest(call.size(1), ints + 2, {ints + 8, ints + 14, ys});
  const float *a = call.f32(0), *b = call.f32(1);
  float* y = call.f32(2);
  WithActivation(call.size(20), [&](auto act) {
    if (call.size(0) == 0) {
      BinaryRuns(call, nest, a, b, y, [=](V p, V q) HEDGEROW_INLINE_BODY { return act(p + q); });
    } else {
      BinaryRuns(call, nest, a, b, y, [=](V p, V q) HEDGEROW_INLINE_BODY { return act(p * q); });
    }
  });
  return kOk;
}

// Splits a reduction into the dims that y keeps and those that are summed over; x has strides in both.
struct Reduction {
  explicit Reduction(const Call& call) {
    const Index dims = call.size(0);
    int64_t xs[6], next = 1;
    for (Index d = dims - 1; d >= 0; --d) {
      xs[d] = next;
      next *= call.op.ints[1 + d];
    }
    const Nest<2> all(dims, call.op.ints + 1, {xs, call.op.ints + 7});
    for (Index d = 0; d < all.rank; ++d) {
      const bool keeps = all.stride[1][d] > 0;
      int64_t* shape = keeps ? kept : summed;
      int64_t* stride = keeps ? kept_stride : summed_stride;
      Index& rank = keeps ? kept_rank : summed_rank;
      shape[rank] = all.extent[d];
      stride[rank++] = all.stride[0][d];
    }
    last_kept = all.stride[1][all.rank - 1] > 0;
  }

  Index kept_rank = 0, summed_rank = 0;
  int64_t kept[6], kept_stride[6], summed[6], summed_stride[6];
  bool last_kept;
};

// Neighbours in y are neighbours in x: kWidth sums at a time.
void SumColumns(const Nest<1>& kept, const Nest<1>& summed, const float* x, float scale, float* y) {
  kept.ForRuns([&](const Index* start) {
    const float* from = x + *start;
    ForVectors(kept.Run(), [&](Index i, Index k) {
      double total[kWidth] = {};
      V block{};
      Index in_block = 0;
      auto flush = [&] {
        for (Index lane = 0; lane < kWidth; ++lane) total[lane] += block[lane];
        block = V{};
        in_block = 0;
      };
      summed.ForRuns([&](const Index* offset) {
        const float* p = from + *offset + i;
        for (Index j = 0; j < summed.Run(); ++j, p += summed.RunStride(0)) {
          block += LoadPart(p, k);
          if (++in_block == kSumBlock) flush();
        }
      });
      flush();
      for (Index lane = 0; lane < k; ++lane) *y++ = static_cast<float>(total[lane]) * scale;
    });
  });
}

void SumRows(const Nest<1>& kept, const Nest<1>& summed, const float* x, float scale, float* y) {
  const Index n = summed.Run(), step = summed.RunStride(0);
  kept.ForRuns([&](const Index* start) {
    for (Index i = 0; i < kept.Run(); ++i) {
      const float* from = x + *start + i * kept.RunStride(0);
      double total = 0;
      summed.ForRuns([&](const Index* offset) {
        const float* p = from + *offset;
        if (step == 1) {
          total += Sum(n, p);
        } else {
          for (Index j = 0; j < n; ++j) total += p[j * step];
        }
      });
      *y++ = static_cast<float>(total) * scale;
    }
  });
}

Status reduce(const Call& call) {
  const Reduction r(call);
  const Nest<1> kept(r.kept_rank, r.kept, {r.kept_stride}), summed(r.summed_rank, r.summed, {r.summed_stride});
  (r.last_kept && r.kept_rank > 0 ? SumColumns : SumRows)(kept, summed, call.f32(0), call.real(0), call.f32(1));
  return kOk;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_ELEMENTWISE_STRIDED_H_
