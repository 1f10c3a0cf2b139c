// Every op once: X(name, ints, buffers, floats, rule). The list feeds the codes, the checks, and each ISA's kernels.
//
// ints: one token each, a letter that names it and what it may be:
//   n      an extent, 1 to 2^31 - 1          k<4    0 to 3
//   p*     0 to 2^28                         B|N    an extent that divides N
//   i~     anything                          #22    22 ints that the rule looks at
//   z@     a signed byte, -128 to 127
// buffers: name, `?` if it may be absent, a type if it is not float32, `=` and the factors of its element count: digits
//   and ints, or numbers that the rule has worked out. `packed` are bytes on a 64-byte boundary.
// rule: what the tokens cannot say (check.cc).
#ifndef HEDGEROW_PROGRAM_OP_LIST_H_
#define HEDGEROW_PROGRAM_OP_LIST_H_

#define HEDGEROW_CONV_INTS "N C H W O k l s t p* q* g|C"
#define HEDGEROW_MAX_POOL_INTS "P H W k l s t p* q*"
#define HEDGEROW_AVG_POOL_INTS "P H W k l s t"
#define HEDGEROW_GRU_INPUTS "x=BTI h0=BH w_ih=3HI w_hh=3HH "
#define HEDGEROW_LSTM_INPUTS "x=BTI h0=BH c0=BH w_ih=4HI w_hh=4HH "

#define HEDGEROW_FLOAT_OPS(X)                                                                                       \
  X(fill, "n", "y=n", "value", Any)                                                                               \
  X(copy, "#22", "x:item=x y:item=y", "scale", Copy)                                                              \
  X(reduce, "#13", "x=x y=y", "scale", Reduce)                                                                    \
  X(binary, "#21", "a=a b=b y=y", "", Binary)                                                                     \
  X(unary, "k<9 n", "x=n y=n", "a b", Any)                                                                        \
  X(unary_grad, "k<7 n", "g=n t=n dx=n", "", Any)                                                                 \
  X(fake_quant, "n B|n b<9", "x=n rows:i64=1 y=n", "", FakeQuant)                                                 \
  X(fake_quant_weight, "C n b<9", "x=Cn y=Cn", "", FakeQuant)                                                     \
  X(linear, "M N K e<3", "x=MK w=NK b?=N y=MN", "", Any)                                                          \
  X(linear_dx, "M N K", "g=MN w=NK dx=MK", "", Any)                                                               \
  X(linear_dw, "M N K", "g=MN x=MK dw=NK", "", Any)                                                               \
  X(conv2d, HEDGEROW_CONV_INTS " e<3", "x=NCHW w=Odkl b?=O y=NOhw", "", Conv)                                      \
  X(conv2d_dx, HEDGEROW_CONV_INTS, "g=NOhw w=Odkl dx=NCHW", "", Conv)                                              \
  X(conv2d_dw, HEDGEROW_CONV_INTS, "g=NOhw x=NCHW dw=Odkl", "", Conv)                                              \
  X(max_pool2d, HEDGEROW_MAX_POOL_INTS, "x=PHW y=Phw index:u8=Phw", "", MaxPool)                                  \
  X(max_pool2d_grad, HEDGEROW_MAX_POOL_INTS, "g=Phw index:u8=Phw dx=PHW", "", MaxPool)                            \
  X(avg_pool2d, HEDGEROW_AVG_POOL_INTS, "x=PHW y=Phw", "", AvgPool)                                               \
  X(avg_pool2d_grad, HEDGEROW_AVG_POOL_INTS, "g=Phw dx=PHW", "", AvgPool)                                         \
  X(batch_norm, "N C S B|N e<3", "x=NCS w=C b=C rows:i64=1 y=NCS mean=C var=C", "eps", Any)                       \
  X(batch_norm_apply, "N C S e<3", "x=NCS w=C b=C mean=C var=C y=NCS", "eps", Any)                                \
  X(batch_norm_grad, "N C S B|N t<2", "g=NCS x=NCS w=C mean=C var=C rows:i64=1 dx=NCS dw=C db=C", "eps", Any)     \
  X(running_stats, "N C S B|N", "mean=C var=C rows:i64=1 rmean=C rvar=C", "momentum", Any)                        \
  X(group_norm, "N C S G|C", "x=NCS w=C b=C y=NCS mean=NG rstd=NG", "eps", Any)                                   \
  X(group_norm_grad, "N C S G|C", "g=NCS x=NCS w=C mean=NG rstd=NG dx=NCS dw=C db=C", "", Any)                    \
  X(layer_norm, "R D", "x=RD w?=D b?=D y=RD mean=R rstd=R", "eps", Any)                                           \
  X(layer_norm_grad, "R D", "g=RD x=RD w?=D mean=R rstd=R dx=RD dw?=D db?=D", "", Any)                            \
  X(embedding, "V D n", "table=VD ids:i64=n y=nD", "", Any)                                                       \
  X(embedding_grad, "V D n", "g=nD ids:i64=n dtable=VD", "", Any)                                                 \
  X(attention, "P T S D E c<2", "q=PTD k=PSD v=PSE y=PTE lse=PT work?=S", "scale", Any)                           \
  X(attention_grad, "P T S D E c<2",                                                                              \
    "g=PTE q=PTD k=PSD v=PSE y=PTE lse=PT dq=PTD dk=PSD dv=PSE work?=2S", "scale", Any)                           \
  X(softmax, "o n i", "x=oni y=oni", "", Any)                                                                     \
  X(softmax_grad, "o n i", "g=oni y=oni dx=oni", "", Any)                                                         \
  X(gru, "B T I H", HEDGEROW_GRU_INPUTS "b_ih?=3H b_hh?=3H y=BTH hn=BH gates=4BTH work=3BH", "", Any)             \
  X(gru_gates, "B T I H", HEDGEROW_GRU_INPUTS "b_ih?=3H b_hh?=3H y=BTH gates=4BTH work=3BH", "", Any)             \
  X(gru_grad, "B T I H",                                                                                          \
    "gy=BTH ghn=BH " HEDGEROW_GRU_INPUTS                                                                          \
    "y=BTH gates=4BTH dx=BTI dh0=BH dw_ih=3HI dw_hh=3HH db_ih=3H db_hh=3H dgates=4BTH work=BH", "", Any)          \
  X(lstm, "B T I H",                                                                                              \
    HEDGEROW_LSTM_INPUTS "b_ih?=4H b_hh?=4H y=BTH hn=BH cn=BH gates=4BTH cells=BTH work=4BH", "", Any)            \
  X(lstm_gates, "B T I H",                                                                                        \
    HEDGEROW_LSTM_INPUTS "b_ih?=4H b_hh?=4H y=BTH gates=4BTH cells=BTH work=4BH", "", Any)                        \
  X(lstm_grad, "B T I H",                                                                                         \
    "gy=BTH ghn=BH gcn=BH " HEDGEROW_LSTM_INPUTS                                                                  \
    "y=BTH gates=4BTH cells=BTH dx=BTI dh0=BH dc0=BH dw_ih=4HI dw_hh=4HH db_ih=4H db_hh=4H dgates=4BTH work=2BH", \
    "", Any)                                                                                                      \
  X(dropout, "n o* r", "x=n random:i64=3 y=n", "p", Any)                                                          \
  X(cross_entropy, "R C B|R i~", "z=RC target:i64=R weight?=C rows:i64=1 norm=1 loss=1", "smoothing", Any)        \
  X(cross_entropy_grad, "R C B|R i~", "gl=1 z=RC target:i64=R weight?=C rows:i64=1 norm=1 dz=RC", "smoothing",    \
    Any)                                                                                                          \
  X(focal, "R C B|R i~", "z=RC target:i64=R weight?=C rows:i64=1 norm=1 loss=1", "gamma", Any)                    \
  X(focal_grad, "R C B|R i~", "gl=1 z=RC target:i64=R weight?=C rows:i64=1 norm=1 dz=RC", "gamma", Any)           \
  X(pair_loss, "k<4 n B|n", "p=n t=n rows:i64=1 norm=1 loss=1", "delta", Any)                                     \
  X(pair_loss_grad, "k<4 n B|n", "gl=1 p=n t=n rows:i64=1 norm=1 dp=n", "delta", Any)                             \
  X(distill, "R C B|R", "z=RC t=RC rows:i64=1 norm=1 loss=1", "temperature", Any)                                 \
  X(distill_grad, "R C B|R", "gl=1 z=RC t=RC rows:i64=1 norm=1 dz=RC", "temperature", Any)                        \
  X(sgd, "n s<2", "w=n g=n v?=n lr=1", "momentum weight_decay", Any)                                              \
  X(adam, "n d<2", "w=n g=n m=n v=n lr=1 corrections=2", "beta1 beta2 eps weight_decay", Any)                     \
  X(rmsprop, "n", "w=n g=n v=n u?=n lr=1", "alpha eps momentum weight_decay", Any)                                \
  X(adagrad, "n", "w=n g=n v=n lr=1", "eps weight_decay", Any)                                                    \
  X(proximal, "n", "g=n w=n anchor=n y=n", "mu", Any)                                                             \
  X(square_sum, "n", "x=n y=1", "", Any)                                                                          \
  X(clip_scale, "", "s=1 y=1", "max_norm", Any)                                                                   \
  X(check_finite, "n", "x=n", "", Any)

// The ops on signed bytes: kernels of their own for ISAs that share all others (isa/dispatch.cc).
#define HEDGEROW_CONV_S8_INTS "k l s t p* q* x@ y@ a@ b@"
#define HEDGEROW_INTEGER_OPS(X)                                                                                   \
  X(quantize_s8, "N C S z@", "x=NCS y:u8=NSC", "scale", Any)                                                      \
  X(dequantize_s8, "N C S z@", "x:u8=NSC y=NCS", "scale", Any)                                                    \
  X(conv2d_s8, "N H W C O " HEDGEROW_CONV_S8_INTS, "x:u8=NHWC w:packed=d y:u8=NhwO", "", ConvS8)                  \
  X(depthwise_s8, "N H W C " HEDGEROW_CONV_S8_INTS, "x:u8=NHWC w:packed=d y:u8=NhwC", "", DepthwiseS8)            \
  X(linear_s8, "M O K y@ a@ b@", "x:u8=MK w:packed=d y:u8=MO", "", LinearS8)                                      \
  X(add_s8, "n z@ z@ z@ a@ b@", "a:u8=n b:u8=n y:u8=n", "a_scale b_scale", BoundsS8)                              \
  X(mul_s8, "n z@ z@ z@ a@ b@", "a:u8=n b:u8=n y:u8=n", "scale", BoundsS8)                                        \
  X(max_pool_s8, "N H W C k l s t p* q* a@ b@", "x:u8=NHWC y:u8=NhwC", "", MaxPoolS8)                             \
  X(avg_pool_s8, "N H W C k l s t z@ z@ a@ b@", "x:u8=NHWC y:u8=NhwC", "scale", AvgPoolS8)                        \
  X(lookup_s8, "n", "x:u8=n table:u8=r y:u8=n", "", LookupS8)

#define HEDGEROW_OPS(X) HEDGEROW_FLOAT_OPS(X) HEDGEROW_INTEGER_OPS(X)

namespace hedgerow {

enum Code : int {
#define HEDGEROW_CODE(name, ...) kCode_##name,
  HEDGEROW_OPS(HEDGEROW_CODE)
#undef HEDGEROW_CODE
      kCodes
};

// Codes below this one are those of HEDGEROW_FLOAT_OPS.
constexpr int kFirstIntegerCode = kCode_quantize_s8;

}  // namespace hedgerow

#endif  // HEDGEROW_PROGRAM_OP_LIST_H_
