// Products of a few rows of float32 with a matrix of bfloat16 or int8, as writing a token needs them.
//
// out[m][n] = sum over k of x[m][k] * weight[n][k], summed in float32; the scales of int8 come later.
// Each weight is read from memory once and widened in a register: a bfloat16 is the upper half of a
// float32. And 4-bit weights to float32, for more rows than that. Built by compiled.py.

#include <immintrin.h>
#include <stdint.h>
#include <string.h>

#define BLOCK 8    // output features that one thread takes at a time: they stay in its cache
#define AHEAD 4096 // bytes to be fetched early: 9 to 14 GB/s of the 16 that memory gave
#define FETCH(from) _mm_prefetch((const char *)(from) + AHEAD, _MM_HINT_T0)

#if defined(__AVX512F__)
#define LANES 16
typedef __m512 floats;
#define ZERO() _mm512_setzero_ps()
#define LOAD(from) _mm512_loadu_ps(from)
#define ADD_PRODUCT(a, b, sum) _mm512_fmadd_ps(a, b, sum)
#define SUM(v) _mm512_reduce_add_ps(v)
static inline floats widen_16(const uint16_t *from) {
  __m512i words = _mm512_cvtepu16_epi32(_mm256_loadu_si256((const __m256i *)from));
  return _mm512_castsi512_ps(_mm512_slli_epi32(words, 16));
}
static inline floats widen_8(const int8_t *from) {
  return _mm512_cvtepi32_ps(_mm512_cvtepi8_epi32(_mm_loadu_si128((const __m128i *)from)));
}
#else
#define LANES 8
typedef __m256 floats;
#define ZERO() _mm256_setzero_ps()
#define LOAD(from) _mm256_loadu_ps(from)
#define ADD_PRODUCT(a, b, sum) _mm256_fmadd_ps(a, b, sum)
static inline float SUM(floats v) {
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(v), _mm256_extractf128_ps(v, 1));
  __m128 two = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(two, _mm_shuffle_ps(two, two, 1)));
}
static inline floats widen_16(const uint16_t *from) {
  __m256i words = _mm256_cvtepu16_epi32(_mm_loadu_si128((const __m128i *)from));
  return _mm256_castsi256_ps(_mm256_slli_epi32(words, 16));
}
static inline floats widen_8(const int8_t *from) {
  return _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_loadl_epi64((const __m128i *)from)));
}
#endif

static inline float widen_one_16(uint16_t half) {
  uint32_t word = (uint32_t)half << 16;
  float result;
  memcpy(&result, &word, sizeof result);
  return result;
}
static inline float widen_one_8(int8_t byte) { return byte; }

// M rows with two output features at once: M + 2 loads serve 2 M products. A last feature without a
// partner is its own: it is written twice to the same place.
#define TILE(M, BITS, WEIGHT)                                                                        \
  static void tile_##M##_##BITS(const float *x, const WEIGHT *first, const WEIGHT *second,           \
                                long inputs, float *out_first, float *out_second, long stride) {     \
    floats a[M], b[M];                                                                               \
    for (int m = 0; m < M; m++) a[m] = b[m] = ZERO();                                                \
    long k = 0;                                                                                      \
    for (; k + LANES <= inputs; k += LANES) {                                                        \
      FETCH(first + k), FETCH(second + k); /* past the matrix's end it does nothing */               \
      floats of_first = widen_##BITS(first + k), of_second = widen_##BITS(second + k);               \
      for (int m = 0; m < M; m++) {                                                                  \
        floats row = LOAD(x + m * inputs + k);                                                       \
        a[m] = ADD_PRODUCT(row, of_first, a[m]);                                                     \
        b[m] = ADD_PRODUCT(row, of_second, b[m]);                                                    \
      }                                                                                              \
    }                                                                                                \
    for (int m = 0; m < M; m++) {                                                                    \
      float sum_first = SUM(a[m]), sum_second = SUM(b[m]);                                           \
      for (long rest = k; rest < inputs; rest++) {                                                   \
        sum_first += x[m * inputs + rest] * widen_one_##BITS(first[rest]);                           \
        sum_second += x[m * inputs + rest] * widen_one_##BITS(second[rest]);                         \
      }                                                                                              \
      out_first[m * stride] = sum_first;                                                             \
      out_second[m * stride] = sum_second;                                                           \
    }                                                                                                \
  }

#define MULTIPLY(BITS, WEIGHT)                                                                       \
  TILE(1, BITS, WEIGHT)                                                                              \
  TILE(2, BITS, WEIGHT)                                                                              \
  TILE(4, BITS, WEIGHT)                                                                              \
  void multiply_##BITS(const float *x, const WEIGHT *weight, float *out, long rows, long outputs,    \
                       long inputs) {                                                                \
    _Pragma("omp parallel for schedule(static)")                                                     \
    for (long block = 0; block < outputs; block += BLOCK) {                                          \
      long stop = block + BLOCK < outputs ? block + BLOCK : outputs;                                 \
      for (long m = 0, taken; m < rows; m += taken) {                                                \
        long left = rows - m;                                                                        \
        taken = left >= 4 ? 4 : left >= 2 ? 2 : 1;                                                   \
        for (long n = block; n < stop; n += 2) {                                                     \
          long partner = n + 1 < stop ? n + 1 : n;                                                   \
          const float *from = x + m * inputs;                                                        \
          const WEIGHT *first = weight + n * inputs, *second = weight + partner * inputs;            \
          float *to = out + m * outputs;                                                             \
          if (taken == 4) tile_4_##BITS(from, first, second, inputs, to + n, to + partner, outputs); \
          else if (taken == 2)                                                                       \
            tile_2_##BITS(from, first, second, inputs, to + n, to + partner, outputs);               \
          else tile_1_##BITS(from, first, second, inputs, to + n, to + partner, outputs);            \
        }                                                                                            \
      }                                                                                              \
    }                                                                                                \
  }

MULTIPLY(16, uint16_t)
MULTIPLY(8, int8_t)

// Widen 4-bit weights in the order of int4.py, where `block` rows lie together: for each input half as many
// bytes, each with the codes of two rows that are 16 apart. Scales and zeros are bfloat16
// [inputs / 32][rows][2]; `rows` is a multiple of `block`, `inputs` of 32.
void widen_4(const uint8_t *packed, const uint16_t *scales_zeros, float *out, long rows, long inputs, long block) {
  long half = block / 2;
#pragma omp parallel for schedule(static)
  for (long first = 0; first < rows; first += block) {
    const uint8_t *codes = packed + first * inputs / 2;
    for (long group = 0; group < inputs / 32; group++) {
      const uint8_t *tile = codes + group * 32 * half;
      for (long lane = 0; lane < block; lane++) {
        const uint16_t *pair = scales_zeros + 2 * (group * rows + first + lane);
        float scale = widen_one_16(pair[0]), least = widen_one_16(pair[1]) - 8 * scale;
        const uint8_t *from = tile + lane % 16 + lane / 32 * 16;
        int shift = lane / 16 % 2 * 4;
        float *to = out + (first + lane) * inputs + group * 32;
        for (int k = 0; k < 32; k++) to[k] = (from[k * half] >> shift & 15) * scale + least;
      }
    }
  }
}
