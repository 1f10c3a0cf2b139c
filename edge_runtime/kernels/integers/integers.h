// The ops on signed bytes, as each ISA has them (program/ops.h says what they compute), and the packing of what they
// take as constants (packed.h). Their results are the same bits on every ISA.
#ifndef HEDGEROW_INTEGERS_INTEGERS_H_
#define HEDGEROW_INTEGERS_INTEGERS_H_

#include <cstdint>

#include "program/call.h"

namespace hedgerow {

struct IntegerKernels {
  const Kernel* ops;  // one for each code from kFirstIntegerCode on
  // w: outputs x rows x depth, of -127 to 127. `packed` has Blocks(outputs) * ConvBlockBytes(rows, depth) bytes.
  void (*pack_conv)(int64_t outputs, int64_t rows, int64_t depth, const int8_t* w, const int32_t* bias,
                    const float* multiplier, uint8_t* packed);
  // w: channels x places. `packed` has Blocks(channels) * DepthwiseBlockBytes(places) bytes.
  void (*pack_depthwise)(int64_t channels, int64_t places, const int8_t* w, const int32_t* bias,
                         const float* multiplier, uint8_t* packed);
};

extern const IntegerKernels kIntegersScalar;
extern const IntegerKernels kIntegersAvx2;     // x86-64 builds only, as is the next
extern const IntegerKernels kIntegersVnni;     // needs AVX-512 with VNNI
extern const IntegerKernels kIntegersNeon;     // aarch64 builds only, as is the next
extern const IntegerKernels kIntegersDotprod;  // needs the dot product instructions

}  // namespace hedgerow

#endif  // HEDGEROW_INTEGERS_INTEGERS_H_
