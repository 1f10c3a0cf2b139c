// conv2d_dw: g times the windows, transposed into panels a few hundred places deep.
#ifndef HEDGEROW_CONV_WEIGHT_GRADIENT_H_
#define HEDGEROW_CONV_WEIGHT_GRADIENT_H_

#include "conv/forward.h"

namespace hedgerow {
namespace {

// A block of places, in some images: `rows` runs of `columns` places in each.
struct Places {
  Index images, rows, columns;
};

// panel[place][j] = x[at[j] + place's own distance], for a block of places; `pitch` from run to run, `image` from image
// to image. Reads whole vectors: runs of less than one need slack behind them.
void PackPlaces(const Places& block, const float* x, Index image, Index pitch, const Index* at, float* panel) {
  for (Index i = 0; i < block.images; ++i) {
    for (Index row = 0; row < block.rows; ++row, panel += block.columns * kTileColumns) {
      const float* run = x + i * image + row * pitch;
      for (Index j = 0; j < block.columns;) {
        for (Index v = 0; v < kTileVectors; ++v) {
          V lanes[kWidth];
          for (Index c = 0; c < kWidth; ++c) lanes[c] = Load(run + at[v * kWidth + c] + j);
          Transpose(lanes);
          float* to = panel + j * kTileColumns + v * kWidth;
          if (block.columns >= kWidth) {
            for (Index c = 0; c < kWidth; ++c) Store(to + c * kTileColumns, lanes[c]);
          } else {
            for (Index c = 0; c < block.columns; ++c) Store(to + c * kTileColumns, lanes[c]);
          }
        }
        if (j + kWidth >= block.columns) break;
        j = Min(j + kWidth, block.columns - kWidth);  // the last vector overlaps the one before it
      }
    }
  }
}

// Columns [column, last) of one group's dw; images stand image_g and image_x floats apart.
void DwColumns(const Geometry& s, Index column, Index last, const float* g, Index image_g, const float* x,
               Index image_x, float* dw) {
  const Index places = s.OH * s.OW, taps = s.kh * s.kw, depth = s.group_channels * taps;
  const Index columns = Min(s.OW, kDepth), rows = Min(s.OH, kDepth / columns);
  const Index images = Min(s.N, Max(1, kDepth / places));
  const bool in_place = s.Pointwise() && s.OW >= kWidth && (s.OW % columns == 0 || s.OW % columns >= kWidth);
  const Field field = WindowField(s, rows);
  const bool fits = taps <= kMostFieldTaps && field.pitch <= kFieldFloats && field.rows <= kFieldFloats;
  // Channels that a Field has room for.
  const Index room = in_place ? s.group_channels : fits ? kFieldFloats / (images * field.Channel()) : 0;
  if (room == 0) return DwAnywhere(s, column, last, g, image_g, x, image_x, dw);
  alignas(64) float scratch[kFieldFloats + kFieldSlack];
  alignas(64) float panel[kDepth * kTileColumns];
  Step steps[kDepth];
  Index tap_places[kMostFieldTaps];
  for (Index t = 0; t < (in_place ? 0 : taps); ++t) tap_places[t] = TapPlace(s, field, t / s.kw, t % s.kw);
  bool add = false;
  auto block_of_places = [&](Index i, Index top, Index left) {
    const Places block{Min(images, s.N - i), Min(rows, s.OH - top), Min(columns, s.OW - left)};
    Index n = 0;
    for (Index image = 0; image < block.images; ++image) {
      for (Index row = 0; row < block.rows; ++row) {
        for (Index j = 0; j < block.columns; ++j, ++n) steps[n] = {image * image_g + row * s.OW + j, n * kTileColumns};
      }
    }
    const float* g_block = g + i * image_g + top * s.OW + left;
    // The outputs' rows are far apart, too far for the CPU to foresee.
    for (Index image = 0; image < block.images; ++image) {
      for (Index o = 0; o < s.group_outputs; ++o) {
        for (Index j = 0; j < n / block.images; j += 16) __builtin_prefetch(g_block + image * image_g + o * places + j);
      }
    }
    TileOperands operands(n, steps, g_block, places);
    ForRowBlocks(s.group_outputs, [&](Index first_row, Index block_rows) {
      operands.SetRows(first_row, block_rows);
      for (Index t = column, end; t < last; t = end) {
        const Index channel = t / taps, reach = (channel + room) * taps;
        end = Min(last, reach - t < kTileColumns ? reach : t + (reach - t) / kTileColumns * kTileColumns);
        const Index channels = (end - 1) / taps + 1 - channel;
        const float* from = x + i * image_x + channel * s.H * s.W;
        Index image_step = image_x, pitch = s.W;
        if (in_place) {
          from += top * s.W + left;
        } else {
          image_step = channels * field.Channel();
          pitch = field.pitch;
          for (Index image = 0; image < block.images; ++image) {
            field.Fill(from + image * image_x, channels, top, scratch + image * image_step);
          }
          from = scratch + left;
        }
        for (; t < end; t += kTileColumns) {
          const Index width = Min(kTileColumns, end - t);
          Index at[kTileColumns];
          Index c = t / taps - channel, tap = t % taps;
          for (Index j = 0; j < kTileColumns; ++j) {
            at[j] = in_place ? c * s.H * s.W : c * field.Channel() + tap_places[tap];
            if (j + 1 >= width) continue;  // past the last column the last again
            if (++tap < taps) continue;
            tap = 0;
            ++c;
          }
          PackPlaces(block, from, image_step, pitch, at, panel);
          const PanelSlots slots(width);
          operands.SetVectors(panel, slots.slots, kTileVectors);
          ForStrips(block_rows, [&](Index m, Index strip) {
            operands.Tile(m, strip, 0, Finish{nullptr, add, 0}, dw + (first_row + m) * depth + t, depth);
          });
        }
      }
    });
    add = true;
  };
  for (Index i = 0; i < s.N; i += images) {
    for (Index top = 0; top < s.OH; top += rows) {
      for (Index left = 0; left < s.OW; left += columns) block_of_places(i, top, left);
    }
  }
}

// Outputs as far as they give the threads something to share where there are few panels, and every part of them still
// has the work of some panels' packing behind it.
Index OutputParts(const Call& call, const Geometry& s, Index panels) {
  const Index wanted = (4 * call.threads() + panels - 1) / panels;
  return call.threads() == 1 || !s.Pointwise() ? 1 : Max(1, Min(wanted, s.group_outputs / (2 * kTileRows)));
}

void ConvDw(const Call& call, const Geometry& given, const float* g, const float* x, float* dw) {
  const Geometry s = given.Pointwise() ? given.AsOneRow() : given;
  const Index places = s.OH * s.OW, depth = s.group_channels * s.kh * s.kw;
  const Index panels = (depth + kTileColumns - 1) / kTileColumns, parts = OutputParts(call, given, s.groups * panels);
  const double ns = kNsPerMultiplication * kTileColumns * static_cast<double>(s.N * places * s.group_outputs / parts);
  // With few outputs, few panels would be little but copies of the planes that they meet.
  const Index least = given.Pointwise() || s.group_outputs >= 2 * kTileRows ? 1 : 4;
  ForRanges(call, s.groups * parts * panels, ns, least, [=](Index first, Index last) {
    while (first < last) {
      const Index group = first / panels / parts, part = first / panels % parts;
      const Index from = first % panels, to = Min(panels, from + last - first);
      const Index row = part * s.group_outputs / parts, rows = (part + 1) * s.group_outputs / parts - row;
      const Index output = group * s.group_outputs + row;
      Geometry own = s;
      own.group_outputs = rows;
      DwColumns(own, from * kTileColumns, Min(depth, to * kTileColumns), g + output * places, s.O * places,
                x + group * s.group_channels * s.H * s.W, s.C * s.H * s.W, dw + output * depth);
      first += to - from;
    }
  });
}

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_CONV_WEIGHT_GRADIENT_H_
