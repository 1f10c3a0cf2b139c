// A binary arithmetic coder over bytes (after Martin 1979; carries never leave the 32 bits, as in Mahoney's lpaq).
//
// Both ends keep the interval [low, high]. A bit that is 1 with probability p/65536 takes its lower part. Equal leading
// bytes of low and high are settled and shifted out. After the end the decoder reads zeros, so the encoder ends with the
// shortest bytes that, followed by zeros, lie in the interval.
#ifndef HEDGEROW_CONTEXT_RANGE_CODER_H_
#define HEDGEROW_CONTEXT_RANGE_CODER_H_

#include <cstddef>
#include <cstdint>

namespace hedgerow {
namespace context {

struct Interval {
  uint32_t low = 0, high = 0xffffffff;

  // low <= Split(p) < high for every 0 < p < 65536, so that neither part is ever empty.
  uint32_t Split(uint32_t p) const {
    const uint32_t range = high - low;
    return low + (range >> 16) * p + ((range & 0xffff) * p >> 16);
  }
  bool Settled() const { return ((low ^ high) & 0xff000000) == 0; }
  void Shift() {
    low <<= 8;
    high = high << 8 | 0xff;
  }
  // The value inside with the most zero bytes at its end.
  uint32_t Roundest() const {
    for (uint32_t open = 0xffffffff;; open >>= 8) {
      // The least value that is not below the interval and whose open bits are 0.
      const uint64_t value = (uint64_t{low} + open) & ~uint64_t{open};
      if (value <= high) return static_cast<uint32_t>(value);
    }
  }
};

class Encoder {
 public:
  Encoder() = default;
  Encoder(uint8_t* out, size_t capacity) : out_(out), capacity_(capacity) {}

  void Put(bool bit, uint32_t p) {
    const uint32_t split = at_.Split(p);
    (bit ? at_.high : at_.low) = bit ? split : split + 1;
    for (; at_.Settled(); at_.Shift()) Write(at_.high >> 24);
  }
  // Ends the stream and returns how many bytes it has; those beyond the capacity were counted, not written.
  size_t End() {
    for (uint32_t rest = at_.Roundest(); rest != 0; rest <<= 8) Write(rest >> 24);
    return size_;
  }

 private:
  void Write(uint32_t byte) {
    if (size_ < capacity_) out_[size_] = static_cast<uint8_t>(byte);
    ++size_;
  }

  Interval at_;
  uint8_t* out_ = nullptr;
  size_t capacity_ = 0, size_ = 0;
};

class Decoder {
 public:
  Decoder() = default;
  Decoder(const uint8_t* in, size_t size) : in_(in), size_(size) {
    for (int i = 0; i < 4; ++i) code_ = code_ << 8 | Read();
  }

  bool Get(uint32_t p) {
    const uint32_t split = at_.Split(p);
    const bool bit = code_ <= split;
    (bit ? at_.high : at_.low) = bit ? split : split + 1;
    for (; at_.Settled(); at_.Shift()) code_ = code_ << 8 | Read();
    return bit;
  }
  // Whether the bytes are, to the last, those of an encoder that coded the same bits.
  bool AtEnd() const {
    size_t at = read_ - 4;  // as many were shifted out
    for (uint32_t rest = at_.Roundest(); rest != 0; rest <<= 8, ++at) {
      if (at >= size_ || in_[at] != rest >> 24) return false;
    }
    return at == size_;
  }

 private:
  uint32_t Read() { return read_++ < size_ ? in_[read_ - 1] : 0; }

  Interval at_;
  const uint8_t* in_ = nullptr;
  size_t size_ = 0, read_ = 0;
  uint32_t code_ = 0;
};

}  // namespace context
}  // namespace hedgerow

#endif  // HEDGEROW_CONTEXT_RANGE_CODER_H_
