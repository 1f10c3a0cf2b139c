// The C ABI of the coder of integer planes and of low-rank products, on the terms of c_api.h.
#ifndef HEDGEROW_C_API_CONTEXT_H_
#define HEDGEROW_C_API_CONTEXT_H_

#include "c_api.h"

// low_rank/low_rank.h.
HR_API void hr_low_rank_product(size_t rows, size_t columns, size_t rank, const float* a, const float* b, float* y);

// context/context.h. A stream's state lives in hr_context_state_bytes() of the caller's, aligned to 8 bytes, and keeps
// the pointer to the stream's bytes until it ends. After -1 the state is good for nothing but to begin anew.
HR_API size_t hr_context_state_bytes(void);
HR_API void hr_context_begin_encode(void* state, uint8_t* out, size_t capacity);
HR_API void hr_context_begin_decode(void* state, const uint8_t* in, size_t size);
// How many bytes the stream has; more than the capacity if they did not fit: then they are not all there.
HR_API size_t hr_context_end_encode(void* state);
// 0, or -1 if the stream has bytes missing or left over.
HR_API int32_t hr_context_end_decode(const void* state);

// slot below 16, values below 2^31. Getting returns 0, or -1 when the stream has a value above `most`.
HR_API void hr_context_put_numbers(void* state, int32_t slot, size_t count, const uint32_t* values);
HR_API int32_t hr_context_get_number(void* state, int32_t slot, uint32_t most, uint32_t* value);

// kind is 0 or 1; row_class may be nullptr; taps are 5; lag is 0 or 3 and more; workspace holds
// hr_context_workspace_bytes(columns, lag), aligned to 2 bytes.
// x is finite. seen: context.h's Seen, added to.
HR_API size_t hr_context_workspace_bytes(size_t columns, size_t lag);
HR_API void hr_context_put_plane(void* state, int32_t kind, size_t rows, size_t columns, const uint8_t* row_class,
                                 size_t lag, const int32_t* taps, float lambda, float d1, float d2, const float* x,
                                 int16_t* q, void* workspace, double* seen);
// 0, or -1 when the stream has an integer beyond 16 bits.
HR_API int32_t hr_context_get_plane(void* state, int32_t kind, size_t rows, size_t columns, const uint8_t* row_class,
                                    size_t lag, const int32_t* taps, int16_t* q, void* workspace);
HR_API void hr_context_decode_levels(size_t n, const int16_t* q, int32_t d1, int32_t d2, float scale, float* x);

#endif  // HEDGEROW_C_API_CONTEXT_H_
