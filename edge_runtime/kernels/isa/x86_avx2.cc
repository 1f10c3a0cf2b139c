// AVX2 and FMA: 16 registers, of which a tile of 6 x 16 floats takes 12.
namespace {

struct Isa {
  static constexpr int kWidth = 8;
  static constexpr int kTileRows = 6;
  static constexpr int kTileVectors = 2;
};

}  // namespace

#include "isa/families.h"

namespace hedgerow {

const Kernel kKernelsAvx2[] = HEDGEROW_KERNELS;

}  // namespace hedgerow
