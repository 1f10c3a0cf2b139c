#include "c_api_context.h"

#include <cstring>
#include <new>

#include "context/context.h"
#include "isa/dispatch.h"

using hedgerow::context::Choice;
using hedgerow::context::Decoder;
using hedgerow::context::Encoder;
using hedgerow::context::Plane;
using hedgerow::context::Seen;
using hedgerow::context::State;

namespace {

State& StateAt(void* state) { return *static_cast<State*>(state); }

Plane PlaneOf(size_t rows, size_t columns, const uint8_t* row_class, size_t lag, const int32_t* taps) {
  Plane plane = {rows, columns, row_class, lag, {}};
  std::memcpy(plane.taps, taps, sizeof plane.taps);
  return plane;
}

}  // namespace

void hr_low_rank_product(size_t rows, size_t columns, size_t rank, const float* a, const float* b, float* y) {
  hedgerow::SelectedIsa()->arrays->low_rank.product(rows, columns, rank, a, b, y);
}

size_t hr_context_state_bytes() { return sizeof(State); }

void hr_context_begin_encode(void* state, uint8_t* out, size_t capacity) {
  (new (state) State)->encoder = Encoder(out, capacity);
}

void hr_context_begin_decode(void* state, const uint8_t* in, size_t size) {
  (new (state) State)->decoder = Decoder(in, size);
}

size_t hr_context_end_encode(void* state) { return StateAt(state).encoder.End(); }

int32_t hr_context_end_decode(const void* state) { return static_cast<const State*>(state)->decoder.AtEnd() ? 0 : -1; }

void hr_context_put_numbers(void* state, int32_t slot, size_t count, const uint32_t* values) {
  for (size_t i = 0; i < count; ++i) PutNumber(StateAt(state), slot, values[i]);
}

int32_t hr_context_get_number(void* state, int32_t slot, uint32_t most, uint32_t* value) {
  return GetNumber(StateAt(state), slot, most, value) ? 0 : -1;
}

size_t hr_context_workspace_bytes(size_t columns, size_t lag) {
  return hedgerow::context::WorkspaceBytes(columns, lag);
}

void hr_context_put_plane(void* state, int32_t kind, size_t rows, size_t columns, const uint8_t* row_class, size_t lag,
                          const int32_t* taps, float lambda, float d1, float d2, const float* x, int16_t* q,
                          void* workspace, double* seen) {
  Seen own = {};
  PutPlane(StateAt(state), kind, PlaneOf(rows, columns, row_class, lag, taps), Choice{lambda, d1, d2}, x, q, workspace,
           &own);
  seen[0] += own.ones;
  seen[1] += own.ones_sum;
  seen[2] += own.more;
  seen[3] += own.more_sum;
}

int32_t hr_context_get_plane(void* state, int32_t kind, size_t rows, size_t columns, const uint8_t* row_class,
                             size_t lag, const int32_t* taps, int16_t* q, void* workspace) {
  return GetPlane(StateAt(state), kind, PlaneOf(rows, columns, row_class, lag, taps), q, workspace) ? 0 : -1;
}

void hr_context_decode_levels(size_t n, const int16_t* q, int32_t d1, int32_t d2, float scale, float* x) {
  hedgerow::context::DecodeLevels(n, q, {d1, d2, scale}, x);
}
