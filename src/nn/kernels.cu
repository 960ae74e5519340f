// The fused operations on CUDA, compiled to PTX by build.rs. No header is needed: bf16 is its sixteen bits.
// Every sum is in single precision, and in an order that does not depend on the batch. Names end in the element type.

typedef unsigned int u32;
typedef unsigned long long u64;

struct bf16 { unsigned short bits; };

__device__ __forceinline__ float load(const float* p, u64 i) { return p[i]; }
__device__ __forceinline__ float load(const bf16* p, u64 i) { return __uint_as_float((u32)p[i].bits << 16); }
__device__ __forceinline__ void store(float* p, u64 i, float x) { p[i] = x; }
__device__ __forceinline__ void store(bf16* p, u64 i, float x) {
    u32 bits = __float_as_uint(x);
    // Nearest, ties to even; a NaN stays one.
    bits = isnan(x) ? 0x7fc00000u : bits + 0x7fffu + ((bits >> 16) & 1u);
    p[i].bits = (unsigned short)(bits >> 16);
}

#define EACH(i, count) for (u64 i = blockIdx.x * (u64)blockDim.x + threadIdx.x; i < (count); i += (u64)gridDim.x * blockDim.x)

// ── reductions over a block of up to 1024 threads ──

__device__ __forceinline__ float warp_sum(float x) {
    for (int step = 16; step > 0; step /= 2) x += __shfl_xor_sync(0xffffffffu, x, step);
    return x;
}

__device__ __forceinline__ float warp_max(float x) {
    for (int step = 16; step > 0; step /= 2) x = fmaxf(x, __shfl_xor_sync(0xffffffffu, x, step));
    return x;
}

// Every thread gets the result; `room` holds 32 numbers.
__device__ float block_sum(float x, float* room) {
    x = warp_sum(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < (blockDim.x + 31) / 32 ? room[threadIdx.x % 32] : 0.0f;
    return warp_sum(x);
}

__device__ float block_max(float x, float* room) {
    x = warp_max(x);
    __syncthreads();
    if (threadIdx.x % 32 == 0) room[threadIdx.x / 32] = x;
    __syncthreads();
    x = threadIdx.x % 32 < (blockDim.x + 31) / 32 ? room[threadIdx.x % 32] : -INFINITY;
    return warp_max(x);
}

// ── pointwise: 0 GELU (erf), 1 quick GELU, 2 SiLU, 3 GELU (tanh) ──

__device__ __forceinline__ float normal_cdf(float x) { return 0.5f * (1.0f + erff(x * 0.70710678f)); }
__device__ __forceinline__ float sigmoid(float x) { return 1.0f / (1.0f + expf(-x)); }

template <typename T> __device__ void pointwise(const T* x, T* y, int kind, u64 count) {
    EACH(i, count) {
        float v = load(x, i);
        float a = kind == 1 ? 1.702f : kind == 3 ? 1.5957692f * (1.0f + 0.044715f * v * v) : 1.0f;
        store(y, i, kind == 0 ? v * normal_cdf(v) : v * sigmoid(a * v));
    }
}

template <typename T> __device__ void pointwise_backward(const T* x, const T* dy, T* dx, int kind, u64 count) {
    EACH(i, count) {
        float v = load(x, i), slope;
        if (kind == 0) {
            slope = normal_cdf(v) + v * 0.3989423f * expf(-0.5f * v * v);
        } else if (kind == 3) {
            float s = sigmoid(1.5957692f * v * (1.0f + 0.044715f * v * v));
            slope = s + v * 1.5957692f * (1.0f + 0.134145f * v * v) * s * (1.0f - s);
        } else {
            float a = kind == 1 ? 1.702f : 1.0f, s = sigmoid(a * v);
            slope = s + a * v * s * (1.0f - s);
        }
        store(dx, i, load(dy, i) * slope);
    }
}

// ── a bias, added in place to rows of `width` ──

template <typename T> __device__ void add_bias(T* y, const T* bias, u32 width, u64 count) {
    EACH(i, count) store(y, i, load(y, i) + load(bias, i % width));
}

// ── layer normalisation: one block a row ──

template <typename T>
__device__ void layer_norm(const T* x, const T* w, const T* b, T* y, u32 width, int affine, float eps) {
    __shared__ float room[32];
    u64 row = (u64)blockIdx.x * width;
    float sum = 0.0f;
    for (u32 c = threadIdx.x; c < width; c += blockDim.x) sum += load(x, row + c);
    float mean = block_sum(sum, room) / width;
    float squares = 0.0f;
    for (u32 c = threadIdx.x; c < width; c += blockDim.x) {
        float d = load(x, row + c) - mean;
        squares += d * d;
    }
    float rstd = rsqrtf(block_sum(squares, room) / width + eps);
    for (u32 c = threadIdx.x; c < width; c += blockDim.x) {
        float v = (load(x, row + c) - mean) * rstd;
        store(y, row + c, affine ? v * load(w, c) + load(b, c) : v);
    }
}

template <typename T>
__device__ void layer_norm_backward(const T* x, const T* dy, const T* w, T* dx, u32 width, int affine, float eps) {
    __shared__ float room[32];
    u64 row = (u64)blockIdx.x * width;
    float sum = 0.0f;
    for (u32 c = threadIdx.x; c < width; c += blockDim.x) sum += load(x, row + c);
    float mean = block_sum(sum, room) / width;
    float squares = 0.0f;
    for (u32 c = threadIdx.x; c < width; c += blockDim.x) {
        float d = load(x, row + c) - mean;
        squares += d * d;
    }
    float rstd = rsqrtf(block_sum(squares, room) / width + eps);
    float g_sum = 0.0f, gx_sum = 0.0f;
    for (u32 c = threadIdx.x; c < width; c += blockDim.x) {
        float g = load(dy, row + c) * (affine ? load(w, c) : 1.0f);
        g_sum += g;
        gx_sum += g * (load(x, row + c) - mean) * rstd;
    }
    g_sum = block_sum(g_sum, room) / width;
    gx_sum = block_sum(gx_sum, room) / width;
    for (u32 c = threadIdx.x; c < width; c += blockDim.x) {
        float g = load(dy, row + c) * (affine ? load(w, c) : 1.0f);
        float normed = (load(x, row + c) - mean) * rstd;
        store(dx, row + c, rstd * (g - g_sum - normed * gx_sum));
    }
}

// ── timestep modulation y = x (1 + a) + b ──

template <typename T>
__device__ void modulate(const T* x, const T* a, const T* b, T* y, u32 positions, u32 width, u64 count) {
    EACH(i, count) {
        u64 c = i / ((u64)positions * width) * width + i % width;
        store(y, i, load(x, i) * (1.0f + load(a, c)) + load(b, c));
    }
}

// ── depthwise 3×3, channels last; `back` gives the gradient of the input, whose taps are mirrored ──

template <typename T>
__device__ void depthwise(const T* x, const T* w, const T* b, T* y, u32 height, u32 width, u32 channels, int back, u64 count) {
    EACH(i, count) {
        u32 c = i % channels;
        u64 pixel = i / channels;
        int column = pixel % width, row = pixel / width % height;
        u64 first = pixel / ((u64)width * height) * height * width;
        float sum = back ? 0.0f : load(b, c);
        for (int tap = 0; tap < 9; tap++) {
            int r = row + tap / 3 - 1, q = column + tap % 3 - 1;
            if (r < 0 || q < 0 || r >= (int)height || q >= (int)width) continue;
            float weight = load(w, (u64)c * 9 + (back ? 8 - tap : tap));
            sum += weight * load(x, (first + (u64)r * width + q) * channels + c);
        }
        store(y, i, sum);
    }
}

// ── global response normalisation ──
// Blocks of 32 channels × 8 positions: column sums of products over the positions of one sample.

__device__ __forceinline__ float column_sum(float sum, float (*room)[33]) {
    room[threadIdx.y][threadIdx.x] = sum;
    __syncthreads();
    float total = 0.0f;
    for (u32 k = 0; k < blockDim.y; k++) total += room[k][threadIdx.x];
    __syncthreads();
    return total;
}

// out[b][c] = Σ_n x·y; the norm is its root with y = x.
template <typename T>
__device__ void column_products(const T* x, const T* y, float* out, u32 positions, u32 width, int root) {
    __shared__ float room[8][33];
    u32 c = blockIdx.x * 32 + threadIdx.x;
    u64 sample = (u64)blockIdx.y * positions * width;
    float sum = 0.0f;
    if (c < width)
        for (u32 n = threadIdx.y; n < positions; n += blockDim.y) {
            u64 i = sample + (u64)n * width + c;
            sum += load(x, i) * load(y, i);
        }
    sum = column_sum(sum, room);
    if (threadIdx.y == 0 && c < width) out[(u64)blockIdx.y * width + c] = root ? sqrtf(sum) : sum;
}

// From norms (B, C): the mean over channels plus ε, and with products and γ, Σ_c p γ n / (mean² C).
template <typename T>
__device__ void response_means(const float* norms, const float* products, const T* gamma, float* means, u32 width, int back) {
    __shared__ float room[32];
    u64 row = (u64)blockIdx.x * width;
    float sum = 0.0f, shared = 0.0f;
    for (u32 c = threadIdx.x; c < width; c += blockDim.x) {
        sum += norms[row + c];
        if (back) shared += products[row + c] * load(gamma, c) * norms[row + c];
    }
    float mean = block_sum(sum, room) / width + 1e-6f;
    shared = block_sum(shared, room) / (mean * mean * width);
    if (threadIdx.x == 0) {
        means[2 * blockIdx.x] = mean;
        means[2 * blockIdx.x + 1] = shared;
    }
}

template <typename T>
__device__ void grn(const T* x, const T* gamma, const T* beta, const float* norms, const float* means, T* y, u32 positions, u32 width, u64 count) {
    EACH(i, count) {
        u32 c = i % width;
        u64 b = i / ((u64)positions * width);
        float gain = norms[b * width + c] / means[2 * b] * load(gamma, c) + 1.0f;
        store(y, i, load(x, i) * gain + load(beta, c));
    }
}

template <typename T>
__device__ void grn_backward(const T* x, const T* dy, const T* gamma, const float* norms, const float* products, const float* means, T* dx, u32 positions, u32 width, u64 count) {
    EACH(i, count) {
        u32 c = i % width;
        u64 b = i / ((u64)positions * width), at = b * width + c;
        float mean = means[2 * b], norm = norms[at], g = load(gamma, c);
        float pull = norm > 0.0f ? (products[at] * g / mean - means[2 * b + 1]) / norm : 0.0f;
        store(dx, i, load(dy, i) * (norm / mean * g + 1.0f) + load(x, i) * pull);
    }
}

// ── softmax of rows in two groups of columns, in place of scaled scores; one block a row ──

template <typename T> __device__ void softmax(const T* x, T* y, u32 first, u32 keys) {
    __shared__ float room[32];
    u64 row = (u64)blockIdx.x * keys;
    for (int group = 0; group < 2; group++) {
        u32 from = group ? first : 0, to = group ? keys : first;
        if (from == to) continue;
        float peak = -INFINITY, sum = 0.0f;
        for (u32 j = from + threadIdx.x; j < to; j += blockDim.x) peak = fmaxf(peak, load(x, row + j));
        peak = block_max(peak, room);
        for (u32 j = from + threadIdx.x; j < to; j += blockDim.x) sum += expf(load(x, row + j) - peak);
        float scale = 1.0f / block_sum(sum, room);
        for (u32 j = from + threadIdx.x; j < to; j += blockDim.x)
            store(y, row + j, expf(load(x, row + j) - peak) * scale);
    }
}

template <typename T> __device__ void softmax_backward(const T* p, const T* dp, T* ds, u32 first, u32 keys) {
    __shared__ float room[32];
    u64 row = (u64)blockIdx.x * keys;
    for (int group = 0; group < 2; group++) {
        u32 from = group ? first : 0, to = group ? keys : first;
        if (from == to) continue;
        float sum = 0.0f;
        for (u32 j = from + threadIdx.x; j < to; j += blockDim.x) sum += load(p, row + j) * load(dp, row + j);
        float mean = block_sum(sum, room);
        for (u32 j = from + threadIdx.x; j < to; j += blockDim.x)
            store(ds, row + j, load(p, row + j) * (load(dp, row + j) - mean));
    }
}

// ── attention of one sample, heads one after the other: one warp a row ──
// Key j lies in column j, after the positions' own keys `gap` columns further; `first` keys are under the first softmax.
// Columns between and behind hold nothing and are not read.

#define WARP_ROW \
    u32 r = blockIdx.x * (blockDim.x / 32) + threadIdx.x / 32, lane = threadIdx.x % 32; \
    if (r >= rows) return; \
    u64 row = (u64)r * stride;
#define KEY(j) (row + (j) + ((j) < queries ? 0 : gap))

// From scaled scores; a query sees `length` keys at most, and where `causal` none behind its own position.
template <typename T>
__device__ void attention_weights(const float* scores, T* weights, u32 rows, u32 stride, u32 queries, u32 gap, u32 first, u32 keys, u32 length, int causal) {
    WARP_ROW
    u32 seen = causal ? min(length, r % queries + 1) : length;
    for (int group = 0; group < 2; group++) {
        u32 from = group ? first : 0, to = min(group ? keys : first, seen);
        float peak = -INFINITY, sum = 0.0f;
        for (u32 j = from + lane; j < to; j += 32) peak = fmaxf(peak, scores[KEY(j)]);
        peak = warp_max(peak);
        for (u32 j = from + lane; j < to; j += 32) sum += expf(scores[KEY(j)] - peak);
        float share = 1.0f / warp_sum(sum);
        for (u32 j = from + lane; j < to; j += 32) store(weights, KEY(j), expf(scores[KEY(j)] - peak) * share);
    }
    for (u32 j = seen + lane; j < keys; j += 32) store(weights, KEY(j), 0.0f);
}

// From the weights and their gradient to that of the unscaled scores.
template <typename T>
__device__ void attention_slopes(const T* weights, const float* grads, T* slopes, u32 rows, u32 stride, u32 queries, u32 gap, u32 first, u32 keys, float scale) {
    WARP_ROW
    for (int group = 0; group < 2; group++) {
        u32 from = group ? first : 0, to = group ? keys : first;
        float mean = 0.0f;
        for (u32 j = from + lane; j < to; j += 32) mean += load(weights, KEY(j)) * grads[KEY(j)];
        mean = warp_sum(mean);
        for (u32 j = from + lane; j < to; j += 32)
            store(slopes, KEY(j), load(weights, KEY(j)) * (grads[KEY(j)] - mean) * scale);
    }
}

// ── squared error of each sample: one block a sample ──

template <typename T> __device__ void squared_error(const T* x, const T* y, T* out, u64 sample) {
    __shared__ float room[32];
    u64 from = blockIdx.x * sample;
    float sum = 0.0f;
    for (u64 i = threadIdx.x; i < sample; i += blockDim.x) {
        float d = load(x, from + i) - load(y, from + i);
        sum += d * d;
    }
    sum = block_sum(sum, room);
    if (threadIdx.x == 0) store(out, blockIdx.x, sum / sample);
}

template <typename T> __device__ void squared_error_backward(const T* x, const T* y, const T* g, T* dx, u64 sample, u64 count) {
    EACH(i, count) store(dx, i, 2.0f * load(g, i / sample) / sample * (load(x, i) - load(y, i)));
}

// ── AdamW: out is (θ, m, v) ──

template <typename T>
__device__ void adamw(const T* theta, const T* grad, const T* moments, T* out, float keep, float a1, float b2, float a2, float rate, float root, float eps, u64 count) {
    EACH(i, count) {
        float g = load(grad, i), m = load(moments, i), v = load(moments, count + i);
        m += a1 * (g - m);
        v = v * b2 + a2 * g * g;
        store(out, i, load(theta, i) * keep - rate * m / (sqrtf(v) / root + eps));
        store(out, count + i, m);
        store(out, 2 * count + i, v);
    }
}

// ── entry points ──

#define ENTRY extern "C" __global__ void

#define ENTRIES(T) \
ENTRY pointwise_##T(const T* x, T* y, int kind, u64 count) { pointwise(x, y, kind, count); } \
ENTRY pointwise_backward_##T(const T* x, const T* dy, T* dx, int kind, u64 count) { pointwise_backward(x, dy, dx, kind, count); } \
ENTRY add_bias_##T(T* y, const T* bias, u32 width, u64 count) { add_bias(y, bias, width, count); } \
ENTRY layer_norm_##T(const T* x, const T* w, const T* b, T* y, u32 width, int affine, float eps) { layer_norm(x, w, b, y, width, affine, eps); } \
ENTRY layer_norm_backward_##T(const T* x, const T* dy, const T* w, T* dx, u32 width, int affine, float eps) { layer_norm_backward(x, dy, w, dx, width, affine, eps); } \
ENTRY modulate_##T(const T* x, const T* a, const T* b, T* y, u32 positions, u32 width, u64 count) { modulate(x, a, b, y, positions, width, count); } \
ENTRY depthwise_##T(const T* x, const T* w, const T* b, T* y, u32 height, u32 width, u32 channels, int back, u64 count) { depthwise(x, w, b, y, height, width, channels, back, count); } \
ENTRY column_products_##T(const T* x, const T* y, float* out, u32 positions, u32 width, int root) { column_products(x, y, out, positions, width, root); } \
ENTRY response_means_##T(const float* norms, const float* products, const T* gamma, float* means, u32 width, int back) { response_means(norms, products, gamma, means, width, back); } \
ENTRY grn_##T(const T* x, const T* gamma, const T* beta, const float* norms, const float* means, T* y, u32 positions, u32 width, u64 count) { grn(x, gamma, beta, norms, means, y, positions, width, count); } \
ENTRY grn_backward_##T(const T* x, const T* dy, const T* gamma, const float* norms, const float* products, const float* means, T* dx, u32 positions, u32 width, u64 count) { grn_backward(x, dy, gamma, norms, products, means, dx, positions, width, count); } \
ENTRY softmax_##T(const T* x, T* y, u32 first, u32 keys) { softmax(x, y, first, keys); } \
ENTRY softmax_backward_##T(const T* p, const T* dp, T* ds, u32 first, u32 keys) { softmax_backward(p, dp, ds, first, keys); } \
ENTRY attention_weights_##T(const float* scores, T* weights, u32 rows, u32 stride, u32 queries, u32 gap, u32 first, u32 keys, u32 length, int causal) { attention_weights(scores, weights, rows, stride, queries, gap, first, keys, length, causal); } \
ENTRY attention_slopes_##T(const T* weights, const float* grads, T* slopes, u32 rows, u32 stride, u32 queries, u32 gap, u32 first, u32 keys, float scale) { attention_slopes(weights, grads, slopes, rows, stride, queries, gap, first, keys, scale); } \
ENTRY squared_error_##T(const T* x, const T* y, T* out, u64 sample) { squared_error(x, y, out, sample); } \
ENTRY squared_error_backward_##T(const T* x, const T* y, const T* g, T* dx, u64 sample, u64 count) { squared_error_backward(x, y, g, dx, sample, count); } \
ENTRY adamw_##T(const T* theta, const T* grad, const T* moments, T* out, float keep, float a1, float b2, float a2, float rate, float root, float eps, u64 count) { adamw(theta, grad, moments, out, keep, a1, b2, a2, rate, root, eps, count); }

ENTRIES(float)
ENTRIES(bf16)
