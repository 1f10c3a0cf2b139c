// depthwise_s8 (ops.h): each channel's own window, kBlock channels at a time. An ISA supplies
//   Weight                   the type of a weight: int16_t or int8_t
//   WeightPlace(t, channel)  where among a block's that of the kernel's place t stands; places come in pairs
//   Depthwise                one pixel's sums, rounded and stored
#ifndef HEDGEROW_INTEGERS_DEPTHWISE_H_
#define HEDGEROW_INTEGERS_DEPTHWISE_H_

#include "integers/band.h"
#include "integers/patch.h"
#include "program/ranges.h"

namespace hedgerow {
namespace {

constexpr Index kMostField = kMostPlaces * kBlock;

void PackDepthwise(int64_t channels, int64_t places, const int8_t* w, const int32_t* bias, const float* multiplier,
                   uint8_t* packed) {
  const Index bytes = DepthwiseBlockBytes(places);
  std::memset(packed, 0, static_cast<size_t>(Blocks(channels) * bytes));
  for (Index c = 0; c < channels; ++c) {
    uint8_t* block = packed + c / kBlock * bytes;
    const Index lane = c % kBlock;
    for (Index t = 0; t < places; ++t) {
      const Isa::Weight weight = *w++;
      std::memcpy(block + kBlockHead + Isa::WeightPlace(t, lane) * sizeof weight, &weight, sizeof weight);
    }
    std::memcpy(block + 4 * lane, bias + c, 4);
    std::memcpy(block + 4 * (kBlock + lane), multiplier + c, 4);
  }
}

Status depthwise_s8(const Call& call) {
  const ImageGeometry s = ImageGeometry::Of(call, 4, true);
  const auto* x = reinterpret_cast<const int8_t*>(call.u8(0));
  const uint8_t* packed = call.u8(1);
  auto* y = reinterpret_cast<int8_t*>(call.u8(2));
  const int zero = static_cast<int>(call.size(10));
  const Rounding rounding(call.size(11), call.size(12), call.size(13));
  const Index taps = s.kh * s.kw, block_bytes = DepthwiseBlockBytes(taps);
  // As many channels at once as a band has room for.
  const Index room = Max(1, kBandBytes / 2 / (taps * kBlock)) * kBlock, wide = Min(s.C, room);
  const Index slices = (s.C + wide - 1) / wide;
  const Cut whole(s, wide, kMostField);
  const Index units = s.N * slices * whole.Bands();
  const double ns = static_cast<double>(s.N * s.OH * s.OW * s.C) / static_cast<double>(units) * taps * 0.1;
  ForRanges(call, units, ns, 1, [=](Index first, Index last) {
    alignas(64) int8_t field[kMostField + kBandSlack];
    Index places[kMostPlaces + 1];
    for (Index unit = first; unit < last; ++unit) {
      const Index image = unit / (slices * whole.Bands()), slice = unit / whole.Bands() % slices;
      const Index place = unit % whole.Bands(), from = slice * wide;
      Cut cut = whole;
      cut.channels = Min(wide, s.C - from);
      const Index row = place / cut.across * cut.rows, column = place % cut.across * cut.columns, pitch = cut.Pitch();
      const Index rows = Min(cut.rows, s.OH - row), columns = Min(cut.columns, s.OW - column);
      for (Index t = 0; t < taps; ++t) places[t] = t / s.kw * pitch + t % s.kw * cut.channels;
      places[taps] = 0;  // an odd number's last pair: its second weight is 0
      FillBand<int8_t, 0>(s, cut, x + image * s.H * s.W * s.C, from, row, column, zero, field);
      int8_t* out = y + ((image * s.OH + row) * s.OW + column) * s.C + from;
      for (Index c = 0; c < cut.channels; c += kBlock) {
        const uint8_t* block = packed + (from + c) / kBlock * block_bytes;
        const Target target{rounding, Min(kBlock, cut.channels - c), s.C};
        for (Index r = 0; r < rows; ++r) {
          const int8_t* from = field + r * s.sh * pitch + c;
          int8_t* to = out + r * s.OW * s.C + c;
          for (Index p = 0; p < columns; ++p) {
            Isa::Depthwise(places, (taps + 1) / 2, from + p * s.sw * cut.channels, block, target, to + p * s.C);
          }
        }
      }
    }
  });
  return kOk;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_INTEGERS_DEPTHWISE_H_
