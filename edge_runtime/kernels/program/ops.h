// The ops of a Program, as the native core takes them: one fixed-size record per op, all operands in one arena.
//
// Tensors are contiguous, row-major float32 unless said otherwise; "i64" and "u8" mark the others. A buffer is a byte
// offset into the arena; one marked `?` may be absent (-1). `rows` is an i64 scalar in the arena: how many of the B
// rows of the batch are real, the rest being padding at the end. "y may be x" means that both may be the same range;
// no other overlap gives a defined result, but none may lead outside the arena. Extents are at least 1; entries of a
// shape and of its strides past `rank` are 0. `act` is what an op ends with: 0 nothing, 1 relu, 2 relu6; the bits are
// those of the op and the unary one behind it.
//
//   name              buffers                                      ints                          floats
//   fill              y                                            n                             value
//   copy              x y                                          item rank shape[6] xs[6] ys[6] x0 y0   scale
//       y[y0 + i.ys] = scale * x[x0 + i.xs] for every index i of shape; strides >= 0, in elements of `item` bytes.
//       item 4: float32; items 1 (bytes) and 8 (i64): scale is ignored. Elements of y that no index reaches stay as they are.
//   reduce            x y                                          rank shape[6] ys[6]           scale
//       y[j] = scale * sum of the x[i] with i.ys = j; x has `shape`; y is contiguous, in row-major order, over the dims
//       with ys > 0.
//   binary            a b y                                        kind rank shape[6] as[6] bs[6] act
//       kind 0: y = act(a + b), 1: y = act(a * b); y has `shape`, a and b are read by stride (0 repeats).
//       y may be a, or b, where that one's strides are y's own.
//   unary             x y                                          kind n                        a b
//       0 relu, 1 relu6, 2 gelu (exact), 3 sigmoid, 4 silu, 5 tanh, 6 exp, 7 a x + b, 8 clip to [a, b]. y may be x.
//   unary_grad        g t dx                                       kind n
//       dx = g f'; t is the output y for relu, relu6, sigmoid, tanh, exp, and the input x for gelu, silu.
//       relu: y > 0; relu6: 0 < y < 6. dx may be g or t.
//   fake_quant        x rows y                                     n B bits
//       y = scale (clip(rint(x/scale) + zero, -2^(bits-1), 2^(bits-1) - 1) - zero), scale = (high - low)/(2^bits - 1),
//       zero = rint(-2^(bits-1) - low/scale), [low, high] the range of 0 and the first rows n/B elements. bits 2 to 8;
//       halves round to even; a scale of at most 2^-126 counts as 1; a NaN stays one, an infinity makes y NaN. The same
//       bits on every ISA. y may be x.
//   fake_quant_weight x y                                          C n bits
//       The same for each row of x (C,n), with zero = 0, scale = max|x|/(2^(bits-1) - 1). y may be x.
//   linear            x w b? y                                     M N K act
//       y[M,N] = act(x[M,K] w[N,K]^T + b[N])
//   linear_dx         g w dx                                       M N K        dx[M,K] = g[M,N] w[N,K]
//   linear_dw         g x dw                                       M N K        dw[N,K] = g[M,N]^T x[M,K]
//   conv2d            x w b? y                                     N C H W O kh kw sh sw ph pw groups act
//       x (N,C,H,W), w (O,C/groups,kh,kw), y (N,O,OH,OW), OH = (H + 2 ph - kh)/sh + 1 rounded down; C and O are
//       multiples of groups.
//   conv2d_dx         g w dx                                       as conv2d, but for act
//   conv2d_dw         g x dw                                       as conv2d, but for act
//   max_pool2d        x y index                                    P H W kh kw sh sw ph pw
//       P planes; index (u8, like y): place kw k + l of the first maximum in its window. kh kw <= 255, padding never
//       wins, 2 p <= k. A NaN in the window wins.
//   max_pool2d_grad   g index dx                                   as max_pool2d
//       An index that points outside its window or the image adds nothing.
//   avg_pool2d        x y                                          P H W kh kw sh sw
//   avg_pool2d_grad   g dx                                         as avg_pool2d
//   batch_norm        x w b rows y mean var                        N C S B act                   eps
//       x (N,C,S); statistics of each channel over the first rows N/B of the N; var is biased; all N are normalised:
//       y = act((x - mean)/sqrt(var + eps) w + b). Status 3 where a channel has one value or none. y may be x.
//   batch_norm_apply  x w b mean var y                             N C S act                     eps
//       The same formula with given statistics, and bit for bit the same result. y may be x.
//   batch_norm_grad   g x w mean var rows dx dw db                 N C S B training              eps
//       Training: the gradient through the statistics; dx of padding rows is 0. Otherwise mean and var are constants
//       and all rows count. dx may be g.
//   running_stats     mean var rows rmean rvar                     N C S B                       momentum
//       r = (1 - momentum) r + momentum stat, with the unbiased var (times n/(n-1), n = rows N/B S). Status 3
//       where n is 0 or 1.
//   group_norm        x w b y mean rstd                            N C S G                       eps     mean, rstd (N,G)
//   group_norm_grad   g x w mean rstd dx dw db                     N C S G                               dx may be g
//   layer_norm        x w? b? y mean rstd                          R D                           eps     mean, rstd (R)
//   layer_norm_grad   g x w? mean rstd dx dw? db?                  R D                                   dx may be g
//   embedding         table ids(i64) y                             V D n                         status 2: id not in [0, V)
//   embedding_grad    g ids(i64) dtable                            V D n
//   attention         q k v y lse work?                            P Tq Tk D Dv causal           scale
//       per plane: y = softmax(scale q k^T) v; q (Tq,D), k (Tk,D), v (Tk,Dv); causal row i sees columns 0..i.
//       lse (P,Tq) is the logarithm of each row's sum of exponentials. work (Tk floats) is not used.
//   attention_grad    g q k v y lse dq dk dv work?                 P Tq Tk D Dv causal           scale
//       work (2 Tk floats) is not used.
//   softmax           x y                                          outer n inner                         y may be x
//   softmax_grad      g y dx                                       outer n inner                         dx may be g
//   gru               x h0 w_ih w_hh b_ih? b_hh? y hn gates work   B T I H
//       PyTorch's, batch first: x (B,T,I), h0 (B,H), w_ih (3H,I), w_hh (3H,H), gates in the order r z n:
//       n = tanh(x w_in^T + b_in + r m), m = h w_hn^T + b_hn, h = (1 - z) n + z h.
//       y (B,T,H), hn (B,H), gates (B,T,4H) = r z n m. work: 3 B H floats.
//   gru_gates         x h0 w_ih w_hh b_ih? b_hh? y gates work      B T I H
//       The same gates, bit for bit, from the y that gru gave. work: 3 B H floats.
//   gru_grad          gy ghn x h0 w_ih w_hh y gates dx dh0 dw_ih dw_hh db_ih db_hh dgates work   B T I H
//       dgates (B,T,4H) = gradients of the sums inside r z n, then of m; it may be gates. work: B H floats.
//   lstm              x h0 c0 w_ih w_hh b_ih? b_hh? y hn cn gates cells work   B T I H
//       gates (B,T,4H) in the order i f g o; c = f c + i g, h = o tanh c; cells (B,T,H). work: 4 B H floats.
//   lstm_gates        x h0 c0 w_ih w_hh b_ih? b_hh? y gates cells work         B T I H
//   lstm_grad         gy ghn gcn x h0 c0 w_ih w_hh y gates cells dx dh0 dc0 dw_ih dw_hh db_ih db_hh dgates work  B T I H
//       dgates (B,T,4H) may be gates. work: 2 B H floats.
//   dropout           x random(i64[3]) y                           n op row                      p
//       random = (seed, step, first row). Element i has counter c = first_row row + i; word c mod 4 of
//       Philox4x32-10 with key (seed low, seed high) and counter (c/4 low, c/4 high, step low, op) (Salmon et al.
//       2011) is shifted right by 8 bits and times 2^-24; below p the element becomes 0, else x/(1 - p). y may be x.
//   cross_entropy     z target(i64) weight? rows norm loss         R C B ignore                  smoothing
//       z (R,C); the first rows R/B rows count, and of those the ones whose target is not `ignore`:
//       loss = norm sum_r [(1 - s) w_t (lse - z_t) + s/C sum_c w_c (lse - z_c)], w = 1 without weight.
//       norm is a float in the arena. Status 2 where a counted target is neither in [0, C) nor `ignore`.
//   cross_entropy_grad  gl z target(i64) weight? rows norm dz      R C B ignore                  smoothing
//       gl: one float, the gradient of loss. Rows that do not count get 0. dz may be z.
//   focal             z target(i64) weight? rows norm loss         R C B ignore                  gamma
//       loss = norm sum_r w_t (1 - p_t)^gamma (-log p_t) (Lin et al. 2017, eq. 5)
//   focal_grad        gl z target(i64) weight? rows norm dz        R C B ignore                  gamma
//   pair_loss         p t rows norm loss                           kind n B                      delta
//       norm times the sum over the first rows n/B elements of 0: (p-t)^2, 1: |p-t|, 2: Huber, d^2/2 for |d| <= delta
//       else delta (|d| - delta/2), 3: BCE with logits, max(p,0) - p t + log(1 + exp(-|p|)).
//   pair_loss_grad    gl p t rows norm dp                          kind n B                      delta   dp may be p
//   distill           z t rows norm loss                           R C B                         temperature
//       norm T^2 sum_r KL(softmax(t/T) || softmax(z/T)) (Hinton et al. 2015); t are the teacher's logits.
//   distill_grad      gl z t rows norm dz                          R C B                         temperature   dz may be z
//   sgd               w g v? lr                                    n nesterov                    momentum weight_decay
//       d = g + weight_decay w; with v: v = momentum v + d and d = v, or d + momentum v under Nesterov; w -= lr d.
//   adam              w g m v lr corrections                       n decoupled                   beta1 beta2 eps weight_decay
//       corrections: 2 floats, 1/(1 - beta1^t) and 1/sqrt(1 - beta2^t). decoupled: w -= lr weight_decay w first, else
//       g += weight_decay w. m += (1 - beta1)(g - m); v = beta2 v + (1 - beta2) g^2;
//       w -= lr c1 m / (sqrt(v) c2 + eps).
//   rmsprop           w g v u? lr                                  n                             alpha eps momentum weight_decay
//       g += weight_decay w; v = alpha v + (1 - alpha) g^2; d = g/(sqrt(v) + eps); with u: u = momentum u + d, d = u;
//       w -= lr d.
//   adagrad           w g v lr                                     n                             eps weight_decay
//       g += weight_decay w; v += g^2; w -= lr g/(sqrt(v) + eps).
//   The four leave g as it is, and give status 1 where g is not finite; w is then left in the middle of its update.
//   proximal          g w anchor y                                 n                             mu      y = g + mu (w - anchor); y may be g
//   square_sum        x y                                          n                                     y = sum x^2
//   clip_scale        s y                                                                        max_norm
//       y = min(1, max_norm/(sqrt(s) + 1e-6)), as torch.nn.utils.clip_grad_norm_.
//   check_finite      x                                            n                             status 1 where one is not
//
// Signed bytes: real = (q - zero) * scale, images with their channels last. `low` <= `high` are what a result is clamped
// to: saturation, and a ReLU. round is to the nearest, ties to even; every product and sum of reals is rounded to
// float32 on its own, and where one is NaN, it counts as low. What is packed starts at a multiple of 64 bytes. The
// results are the same bits on every ISA.
//
//   quantize_s8       x(f32) y                                     N C S zero                    scale
//       y (N,S,C) = clamp(round(x / scale) + zero, -128, 127), x (N,C,S); NaN counts as 0.
//   dequantize_s8     x y(f32)                                     N C S zero                    scale
//       y (N,C,S) = (x - zero) * scale, x (N,S,C)
//   conv2d_s8         x w(packed) y                                N H W C O kh kw sh sw ph pw x_zero y_zero low high
//       x (N,H,W,C), y (N,OH,OW,O); w holds the layer's weights (O,kh,kw,C), biases and multipliers as
//       hr_conv_s8_pack(O, kh, kw C) wrote them:
//       y = clamp(round(float32(bias[o] + sum x w) * multiplier[o]) + y_zero, low, high), summed mod 2^32.
//       Padding is x_zero; a bias holds - x_zero * (the sum of its weights). kh kw C <= 131071.
//   depthwise_s8      x w(packed) y                                N H W C kh kw sh sw ph pw x_zero y_zero low high
//       The same with a kernel (kh,kw) for each channel, from hr_depthwise_s8_pack(C, kh kw). kh kw <= 2048.
//   linear_s8         x w(packed) y                                M O K y_zero low high
//       x (M,K), y (M,O), w from hr_conv_s8_pack(O, 1, K). K <= 131071.
//   add_s8            a b y                                        n a_zero b_zero y_zero low high   a_ratio b_ratio
//       y = clamp(round((a - a_zero) * a_ratio + (b - b_zero) * b_ratio) + y_zero, low, high); a_ratio is the scale of
//       a over that of y. y may be a or b.
//   mul_s8            a b y                                        n a_zero b_zero y_zero low high   ratio
//       y = clamp(round((a - a_zero) * (b - b_zero) * ratio) + y_zero, low, high). y may be a or b.
//   max_pool_s8       x y                                          N H W C kh kw sh sw ph pw low high
//       Padding never wins, 2 p <= k.
//   avg_pool_s8       x y                                          N H W C kh kw sh sw x_zero y_zero low high   ratio
//       y = clamp(round((the window's sum of x - x_zero) * float32(ratio / (kh kw))) + y_zero, low, high); the
//       division is in float64. kh kw < 2^23.
//   lookup_s8         x table y                                    n
//       y = table[x + 128]; 256 bytes. y may be x.
//
// Sums over many elements (statistics, losses, gradients of parameters) are taken in blocks, or in double, so that
// their relative error stays near float32's own; every order of summation is fixed by the ints alone.
#ifndef HEDGEROW_PROGRAM_OPS_H_
#define HEDGEROW_PROGRAM_OPS_H_

#include <cstdint>

namespace hedgerow {

inline constexpr int kMaxBuffers = 20;
inline constexpr int kMaxInts = 24;
inline constexpr int kMaxFloats = 6;

// One op of a Program. The Python side (program/packed.py) writes the same layout.
struct Op {
  int32_t code;  // hr_op_code(name)
  int32_t reserved;
  int64_t buffers[kMaxBuffers];
  int64_t ints[kMaxInts];
  double floats[kMaxFloats];
};
static_assert(sizeof(Op) == 8 + 8 * (kMaxBuffers + kMaxInts + kMaxFloats), "the layout is part of the ABI");

enum Status : int32_t {
  kOk = 0,
  kNotFinite = 1,     // a loss or a gradient is NaN or infinite
  kOutOfRange = 2,    // a token or a class is outside its table
  kOneValue = 3,      // batch norm over a single value
  kNoArena = 4,       // a null or misaligned arena, or a range of ops that is not the session's
};

}  // namespace hedgerow

#endif  // HEDGEROW_PROGRAM_OPS_H_
