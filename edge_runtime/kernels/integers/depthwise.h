// depthwise_s8 (ops.h): each channel's own window, kBlock channels at a time.
#ifndef HEDGEROW_INTEGERS_DEPTHWISE_H_
#define HEDGEROW_INTEGERS_DEPTHWISE_H_

#include "integers/band.h"
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
      const int16_t weight = *w++;
      std::memcpy(block + kBlockHead + 2 * ((t / 2 * kBlock + lane) * 2 + t % 2), &weight, 2);
    }
    std::memcpy(block + 4 * lane, bias + c, 4);
    std::memcpy(block + 4 * (kBlock + lane), multiplier + c, 4);
  }
}

// A row of pixels, `step` elements apart, kBlock channels of each, of which `channels` are stored `stride` apart.
void DepthwiseStrip(const Index* places, Index count, Index step, Index pixels, const int8_t* x, const uint8_t* block,
                    const Rounding& rounding, Index channels, Index stride, int8_t* y) {
  const auto* weights = reinterpret_cast<const int16_t*>(block + kBlockHead);
  for (Index p = 0; p < pixels; ++p, x += step, y += stride) {
    int32_t sum[kBlock];
    float multiplier[kBlock];
    int8_t out[kBlock];
    std::memcpy(sum, block, sizeof sum);
    std::memcpy(multiplier, block + sizeof sum, sizeof multiplier);
    for (Index t = 0; t < count; ++t) {
      const int8_t* from = x + places[t];
      const int16_t* w = weights + t / 2 * kBlock * 2 + t % 2;
      for (Index c = 0; c < kBlock; ++c) {
        sum[c] = static_cast<int32_t>(static_cast<uint32_t>(sum[c]) + static_cast<uint32_t>(from[c] * w[2 * c]));
      }
    }
    for (Index c = 0; c < kBlock; ++c) out[c] = rounding(static_cast<float>(sum[c]) * multiplier[c]);
    std::memcpy(y, out, static_cast<size_t>(channels));
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
    Index places[kMostPlaces];
    for (Index unit = first; unit < last; ++unit) {
      const Index image = unit / (slices * whole.Bands()), slice = unit / whole.Bands() % slices;
      const Index place = unit % whole.Bands(), from = slice * wide;
      Cut cut = whole;
      cut.channels = Min(wide, s.C - from);
      const Index row = place / cut.across * cut.rows, column = place % cut.across * cut.columns, pitch = cut.Pitch();
      const Index rows = Min(cut.rows, s.OH - row), columns = Min(cut.columns, s.OW - column);
      for (Index t = 0; t < taps; ++t) places[t] = t / s.kw * pitch + t % s.kw * cut.channels;
      FillBand<int8_t, 0>(s, cut, x + image * s.H * s.W * s.C, from, row, column, zero, field);
      int8_t* out = y + ((image * s.OH + row) * s.OW + column) * s.C + from;
      for (Index c = 0; c < cut.channels; c += kBlock) {
        const uint8_t* block = packed + (from + c) / kBlock * block_bytes;
        for (Index r = 0; r < rows; ++r) {
          DepthwiseStrip(places, taps, s.sw * cut.channels, columns, field + r * s.sh * pitch + c, block, rounding,
                         Min(kBlock, cut.channels - c), s.C, out + r * s.OW * s.C + c);
        }
      }
    }
  });
  return kOk;
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_INTEGERS_DEPTHWISE_H_
