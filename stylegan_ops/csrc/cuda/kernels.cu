// All kernels, by the names that cuda.py launches them by.
#include "bias_act.cuh"
#include "filtered_lrelu.cuh"
#include "upfirdn2d.cuh"

// Left to itself, the compiler saves registers here until it has to spill some; hence the 4 blocks.
#define SGO_BIAS_ACT_KERNELS(dtype, T)                                       \
    SGO_KERNEL(bias_act_##dtype, 4, BiasActArgs, bias_act<T, SGO_VALUE>)     \
    SGO_KERNEL(bias_act_grad_##dtype, 4, BiasActArgs, bias_act<T, SGO_GRAD>) \
    SGO_KERNEL(bias_act_grad2_##dtype, 4, BiasActArgs, bias_act<T, SGO_GRAD2>)
SGO_FOR_EACH_DTYPE(SGO_BIAS_ACT_KERNELS)

#define SGO_TILED(dtype, T, up, down, variant, ...)                                   \
    SGO_KERNEL(upfirdn2d_##dtype##_u##up##_d##down##_4x4_##variant, 0, Upfirdn2dArgs, \
               upfirdn2d_tiled<T, up, down, 4, __VA_ARGS__>)

// Of tiles: channels_last or not; planes; rows and columns of patches; height and width of a patch. cuda.py has the
// same numbers. "large" suits large images, "small" small ones of NCHW.
#define SGO_UPFIRDN2D_KERNELS(dtype, T)                                   \
    SGO_KERNEL(upfirdn2d_##dtype, 0, Upfirdn2dArgs, upfirdn2d_generic<T>) \
    SGO_TILED(dtype, T, 1, 1, large, false, 1, 8, 32, 4, 1)               \
    SGO_TILED(dtype, T, 1, 1, small, false, 4, 4, 16, 4, 1)               \
    SGO_TILED(dtype, T, 1, 1, nhwc, true, 32, 2, 8, 4, 1)                 \
    SGO_TILED(dtype, T, 2, 1, large, false, 1, 16, 32, 2, 2)              \
    SGO_TILED(dtype, T, 2, 1, small, false, 8, 8, 8, 2, 2)                \
    SGO_TILED(dtype, T, 2, 1, nhwc, true, 32, 4, 4, 2, 2)                 \
    SGO_TILED(dtype, T, 1, 2, large, false, 1, 8, 32, 2, 1)               \
    SGO_TILED(dtype, T, 1, 2, small, false, 8, 4, 8, 2, 1)                \
    SGO_TILED(dtype, T, 1, 2, nhwc, true, 32, 2, 4, 2, 1)
SGO_FOR_EACH_DTYPE(SGO_UPFIRDN2D_KERNELS)

#define SGO_FILTERED_LRELU_KERNELS(dtype, T) \
    SGO_KERNEL(filtered_lrelu_##dtype, 4, FilteredLreluArgs, filtered_lrelu<T>)
SGO_FOR_EACH_DTYPE(SGO_FILTERED_LRELU_KERNELS)
