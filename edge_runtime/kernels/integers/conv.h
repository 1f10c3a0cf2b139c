// conv2d_s8 and linear_s8 (ops.h), once for all ISAs. The file that includes this has defined `struct Isa` with
//   Element, kOffset         what x is multiplied as: x + kOffset in this type
//   kGroup                   how many neighbours one multiply-add takes: the group that weights are interleaved by
//   kNarrowest, kWidest      channels of a tile: these and the powers of 2 between
//   MostPixels(channels)     pixels of a tile of so many channels
//   Tile<pixels, channels>   their sums, rounded and stored
#ifndef HEDGEROW_INTEGERS_CONV_H_
#define HEDGEROW_INTEGERS_CONV_H_

#include "integers/band.h"
#include "integers/patch.h"
#include "program/ranges.h"

namespace hedgerow {
namespace {

constexpr double kNsPerProduct = 1 / 60.;

void PackConv(int64_t outputs, int64_t rows, int64_t depth, const int8_t* w, const int32_t* bias,
              const float* multiplier, uint8_t* packed) {
  const Index bytes = ConvBlockBytes(rows, depth), groups = (depth + Isa::kGroup - 1) / Isa::kGroup;
  std::memset(packed, 0, static_cast<size_t>(Blocks(outputs) * bytes));
  for (Index o = 0; o < outputs; ++o) {
    uint8_t* block = packed + o / kBlock * bytes;
    const Index lane = o % kBlock;
    uint8_t* weights = block + kBlockHead + lane * Isa::kGroup;
    uint32_t total = 0;
    for (Index r = 0; r < rows; ++r, weights += groups * kBlock * Isa::kGroup) {
      for (Index i = 0; i < depth; ++i, ++w) {
        total += static_cast<uint32_t>(*w);
        std::memcpy(weights + i / Isa::kGroup * kBlock * Isa::kGroup + i % Isa::kGroup, w, 1);
      }
    }
    // Every element of x is kOffset too large. Unsigned, for it may wrap.
    const uint32_t corrected = static_cast<uint32_t>(bias[o]) - Isa::kOffset * total;
    std::memcpy(block + 4 * lane, &corrected, 4);
    std::memcpy(block + 4 * (kBlock + lane), multiplier + o, 4);
  }
}

using TileFunction = void (*)(const Patch&, const Isa::Element*, const uint8_t*, const Target&, int8_t*);

template <Index kChannels, Index kPixels = Isa::MostPixels(kChannels)>
TileFunction TileOf(Index pixels) {
  if constexpr (kPixels == 1) {
    return Isa::Tile<1, kChannels>;
  } else {
    return pixels == kPixels ? Isa::Tile<kPixels, kChannels> : TileOf<kChannels, kPixels - 1>(pixels);
  }
}

// A row of pixels, at most kChannels channels of each.
template <Index kChannels>
void Strip(const Patch& patch, Index pixels, const Isa::Element* x, const uint8_t* block, const Target& target,
           int8_t* y) {
  const Index part = EvenPart(pixels, Isa::MostPixels(kChannels));
  const TileFunction tile = TileOf<kChannels>(part);
  Index p = 0;
  for (; p + part <= pixels; p += part) tile(patch, x + p * patch.step, block, target, y + p * target.stride);
  if (p < pixels) TileOf<kChannels>(pixels - p)(patch, x + p * patch.step, block, target, y + p * target.stride);
}

using StripFunction = void (*)(const Patch&, Index, const Isa::Element*, const uint8_t*, const Target&, int8_t*);

template <Index kChannels = Isa::kWidest>
StripFunction StripOf(Index channels) {
  if constexpr (kChannels == Isa::kNarrowest) {
    return Strip<kChannels>;
  } else {
    return channels >= kChannels ? Strip<kChannels> : StripOf<kChannels / 2>(channels);
  }
}

// Channels of the next tile where so many are left: within the last block what just holds them, else what is all used.
HEDGEROW_INLINE Index WidthOf(Index left) {
  Index width = Isa::kNarrowest;
  while (width < kBlock && width < left) width *= 2;
  while (width < Isa::kWidest && 2 * width <= left) width *= 2;
  return width;
}

// The outputs of one band, channels [from, to); `y` is the first of them at channel 0.
void MultiplyBand(const ImageGeometry& s, const Cut& cut, Index rows, Index columns, const Isa::Element* field,
                  const uint8_t* packed, Index block_bytes, Index from, Index to, Target target, int8_t* y) {
  const Index depth = s.kw * s.C, pitch = cut.Pitch();
  const Patch patch{s.kh, (depth + Isa::kGroup - 1) / Isa::kGroup, pitch, s.sw * s.C, block_bytes};
  // Pixels of all rows at once, where each row begins where the one before would go on.
  const bool as_one = rows * columns > columns && s.kh == 1 && s.sh * pitch == columns * patch.step && columns == s.OW;
  for (Index c = from; c < to;) {
    const Index width = WidthOf(to - c);
    target.channels = Min(width, to - c);
    const StripFunction strip = StripOf<>(width);
    const uint8_t* block = packed + c / kBlock * block_bytes;
    if (as_one) {
      strip(patch, rows * columns, field, block, target, y + c);
    } else {
      for (Index r = 0; r < rows; ++r) {
        strip(patch, columns, field + r * s.sh * pitch, block, target, y + r * s.OW * target.stride + c);
      }
    }
    c += width;
  }
}

void Conv(const Call& call, const ImageGeometry& s, Index outputs, int zero, const Rounding& rounding) {
  const auto* x = reinterpret_cast<const int8_t*>(call.u8(0));
  const uint8_t* packed = call.u8(1);
  auto* y = reinterpret_cast<int8_t*>(call.u8(2));
  const Cut cut(s, s.C, kMostProducts);
  // Few bands are shared by their channels, too.
  const Index bands = s.N * cut.Bands();
  const bool shares = call.threads() > 1 && bands < 2 * call.threads();
  const Index wide = shares ? RoundUp(EvenPart(outputs, Isa::kWidest), kBlock) : outputs;
  const Index parts = shares ? (outputs + wide - 1) / wide : 1, units = bands * parts;
  const Index block_bytes = ConvBlockBytes(s.kh, s.kw * s.C);
  const double products = static_cast<double>(s.N * s.OH * s.OW) * static_cast<double>(s.kh * s.kw * s.C * outputs);
  ForRanges(call, units, products * kNsPerProduct / static_cast<double>(units), 1, [=](Index first, Index last) {
    alignas(64) typename Isa::Element field[kMostProducts + 1 + kBandSlack];
    for (Index unit = first, filled = -1; unit < last; ++unit) {
      const Index band = parts == 1 ? unit : unit / parts, from = parts == 1 ? 0 : unit % parts * wide;
      const auto [image, row, column] = cut.At(band);
      if (band != filled) {
        FillBand<typename Isa::Element, Isa::kOffset>(s, cut, x + image * s.H * s.W * s.C, 0, row, column, zero, field);
      }
      filled = band;
      MultiplyBand(s, cut, Min(cut.rows, s.OH - row), Min(cut.columns, s.OW - column), field, packed, block_bytes, from,
                   Min(outputs, from + wide), Target{rounding, 0, outputs},
                   y + ((image * s.OH + row) * s.OW + column) * outputs);
    }
  });
}

Status conv2d_s8(const Call& call) {
  const Rounding rounding(call.size(12), call.size(13), call.size(14));
  Conv(call, ImageGeometry::Of(call, 5, true), call.size(4), static_cast<int>(call.size(11)), rounding);
  return kOk;
}

// A convolution of an image that is one row high, with a pixel for each row of x.
Status linear_s8(const Call& call) {
  const Index M = call.size(0), O = call.size(1), K = call.size(2);
  const Rounding rounding(call.size(3), call.size(4), call.size(5));
  Conv(call, ImageGeometry{1, 1, M, K, 1, 1, 1, 1, 0, 0, 1, M}, O, 0, rounding);
  return kOk;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_INTEGERS_CONV_H_
