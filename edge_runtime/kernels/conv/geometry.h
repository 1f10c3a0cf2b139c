// The extents of a convolution or of its gradients, from the ints that the three ops share.
#ifndef HEDGEROW_CONV_GEOMETRY_H_
#define HEDGEROW_CONV_GEOMETRY_H_

#include "isa/index.h"
#include "program/call.h"

namespace hedgerow {
namespace {

struct Span {
  Index first, last;  // one past
};

// The places o in [0, places) for which o stride + offset is in [0, image).
HEDGEROW_INLINE Span Inside(Index places, Index stride, Index offset, Index image) {
  const Index first = offset >= 0 ? 0 : (-offset + stride - 1) / stride;
  const Index last = image <= offset ? 0 : (image - offset + stride - 1) / stride;
  const Index end = Min(places, last);
  return {Min(first, end), end};
}

struct Geometry {
  explicit Geometry(const Call& call)
      : N(call.size(0)), C(call.size(1)), H(call.size(2)), W(call.size(3)), O(call.size(4)), kh(call.size(5)),
        kw(call.size(6)), sh(call.size(7)), sw(call.size(8)), ph(call.size(9)), pw(call.size(10)),
        groups(call.size(11)), group_channels(C / groups), group_outputs(O / groups),
        OH((H + 2 * ph - kh) / sh + 1), OW((W + 2 * pw - kw) / sw + 1) {}

  bool Depthwise() const { return C == groups && O == groups; }
  bool Pointwise() const { return kh == 1 && kw == 1 && sh == 1 && sw == 1 && ph == 0 && pw == 0; }
  // The same pointwise convolution of images that are one row high.
  Geometry AsOneRow() const {
    Geometry row = *this;
    row.H = row.OH = 1;
    row.W = row.OW = H * W;
    return row;
  }
  // The output columns at which the kernel's column l is inside the image.
  Span Columns(Index l) const { return Inside(OW, sw, l - pw, W); }

  Index N, C, H, W, O, kh, kw, sh, sw, ph, pw, groups, group_channels, group_outputs, OH, OW;
};

}  // namespace
}  // namespace hedgerow

#endif  // HEDGEROW_CONV_GEOMETRY_H_
