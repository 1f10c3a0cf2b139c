// Constants of a layer on signed bytes, packed: weights, biases and multipliers in blocks of kBlock output channels.
//
//   block of conv2d_s8 and linear_s8    kBlock int32 biases, kBlock float multipliers, then the weights as
//                                       [kernel row][group of a row's kw C elements][channel][element of the group]
//   block of depthwise_s8               the same two, then [pair of places][channel][2] weights of 16 bits
//
// Channels past the last and elements past a row's end are 0. What a group is, and what has been added to a bias, is
// the ISA's own affair; how many bytes there are is not, so that a check of ranges holds whatever ISA runs later. A
// block that another ISA packed, or that is damaged, gives wrong numbers and leads nowhere else.
#ifndef HEDGEROW_INTEGERS_PACKED_H_
#define HEDGEROW_INTEGERS_PACKED_H_

#include <cstdint>

namespace hedgerow {
namespace {

constexpr int64_t kBlock = 16;
// Bytes of a block before its weights.
constexpr int64_t kBlockHead = kBlock * 8;
constexpr int64_t kPackedAlignment = 64;
// Groups are 1, 2, 4 or 8 elements.
constexpr int64_t kMostGroup = 8;
// Of products of bytes in one sum: so many fit 32 bits, whatever they are.
constexpr int64_t kMostProducts = 131071;
// Of a depthwise kernel's places.
constexpr int64_t kMostPlaces = 2048;

// All are at least 1, `outputs` below 2^31, and a sum has rows * depth <= kMostProducts, or places <= kMostPlaces.
constexpr int64_t ConvBlockBytes(int64_t rows, int64_t depth) {
  return kBlockHead + kBlock * rows * ((depth + kMostGroup - 1) / kMostGroup * kMostGroup);
}
constexpr int64_t DepthwiseBlockBytes(int64_t places) { return kBlockHead + kBlock * 2 * ((places + 1) / 2 * 2); }
constexpr int64_t Blocks(int64_t outputs) { return (outputs + kBlock - 1) / kBlock; }

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_INTEGERS_PACKED_H_
