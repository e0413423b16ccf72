/* Many preads in one call, each checked while it is in the processor's cache; the interpreter's lock is released once.
 *
 * Of 64 KiB members in a warm page cache the kernel's copy takes 5 to 9 us each, the checksum 1.0 to 1.4 with AVX-512,
 * 1.5 to 1.8 with AVX2 and 5 without.
 * Loaded through ctypes (preads.py).
 */
#define _GNU_SOURCE
#include <errno.h>
#include <fcntl.h>
#include <stdint.h>
#include <string.h>
#include <unistd.h>
#if !defined(WIDEST)
#define WIDEST 512 /* bits of a vector; a test defines less */
#endif
#if defined(__x86_64__) && WIDEST >= 256
#define VECTORS
#include <immintrin.h>
#endif

/* XXH3, 64 bits, for more than SHORT bytes, its default secret, no seed: https://github.com/Cyan4973/xxHash,
 * doc/xxhash_spec.md. xxhash's own header is no part of its Python package. */
enum { SHORT = 240, STRIPE = 64, BLOCK = 1024, STRIPES = BLOCK / STRIPE };
enum { LINE = 64, NOWHERE = -1, ON_ITS_WAY = -2 }; /* bytes of a cache line; in struct place's `kept` */
static const uint64_t PRIME32_1 = 0x9E3779B1, PRIME32_2 = 0x85EBCA77, PRIME32_3 = 0xC2B2AE3D;
static const uint64_t PRIME64_1 = 0x9E3779B185EBCA87, PRIME64_2 = 0xC2B2AE3D27D4EB4F, PRIME64_3 = 0x165667B19E3779F9;
static const uint64_t PRIME64_4 = 0x85EBCA77C2B2AE63, PRIME64_5 = 0x27D4EB2F165667C5;
static const uint8_t SECRET[192] = {
    0xb8, 0xfe, 0x6c, 0x39, 0x23, 0xa4, 0x4b, 0xbe, 0x7c, 0x01, 0x81, 0x2c, 0xf7, 0x21, 0xad, 0x1c, 0xde, 0xd4,
    0x6d, 0xe9, 0x83, 0x90, 0x97, 0xdb, 0x72, 0x40, 0xa4, 0xa4, 0xb7, 0xb3, 0x67, 0x1f, 0xcb, 0x79, 0xe6, 0x4e,
    0xcc, 0xc0, 0xe5, 0x78, 0x82, 0x5a, 0xd0, 0x7d, 0xcc, 0xff, 0x72, 0x21, 0xb8, 0x08, 0x46, 0x74, 0xf7, 0x43,
    0x24, 0x8e, 0xe0, 0x35, 0x90, 0xe6, 0x81, 0x3a, 0x26, 0x4c, 0x3c, 0x28, 0x52, 0xbb, 0x91, 0xc3, 0x00, 0xcb,
    0x88, 0xd0, 0x65, 0x8b, 0x1b, 0x53, 0x2e, 0xa3, 0x71, 0x64, 0x48, 0x97, 0xa2, 0x0d, 0xf9, 0x4e, 0x38, 0x19,
    0xef, 0x46, 0xa9, 0xde, 0xac, 0xd8, 0xa8, 0xfa, 0x76, 0x3f, 0xe3, 0x9c, 0x34, 0x3f, 0xf9, 0xdc, 0xbb, 0xc7,
    0xc7, 0x0b, 0x4f, 0x1d, 0x8a, 0x51, 0xe0, 0x4b, 0xcd, 0xb4, 0x59, 0x31, 0xc8, 0x9f, 0x7e, 0xc9, 0xd9, 0x78,
    0x73, 0x64, 0xea, 0xc5, 0xac, 0x83, 0x34, 0xd3, 0xeb, 0xc3, 0xc5, 0x81, 0xa0, 0xff, 0xfa, 0x13, 0x63, 0xeb,
    0x17, 0x0d, 0xdd, 0x51, 0xb7, 0xf0, 0xda, 0x49, 0xd3, 0x16, 0x55, 0x26, 0x29, 0xd4, 0x68, 0x9e, 0x2b, 0x16,
    0xbe, 0x58, 0x7d, 0x47, 0xa1, 0xfc, 0x8f, 0xf8, 0xb8, 0xd1, 0x7a, 0xd0, 0x31, 0xce, 0x45, 0xcb, 0x3a, 0x8f,
    0x95, 0x16, 0x04, 0x28, 0xaf, 0xd7, 0xfb, 0xca, 0xbb, 0x4b, 0x40, 0x7e
};

static inline uint64_t word(const uint8_t *from)
{
    uint64_t value;
    memcpy(&value, from, sizeof value);
    return value;
}

static const uint8_t *const LAST = SECRET + sizeof SECRET - STRIPE;

/* Adds `count` stripes of 64 bytes to the eight accumulators, each with the secret 8 bytes further on. */
static void add(uint64_t sums[restrict 8], const uint8_t *from, const uint8_t *secret, int64_t count)
{
    for (; count > 0; count--, from += STRIPE, secret += 8) {
        for (int i = 0; i < 8; i++) {
            uint64_t value = word(from + 8 * i), keyed = value ^ word(secret + 8 * i);
            sums[i ^ 1] += value;
            sums[i] += (keyed & 0xFFFFFFFF) * (keyed >> 32);
        }
    }
}

/* Adds `count` whole blocks, and scrambles the accumulators behind each. */
static void add_plain(uint64_t sums[restrict 8], const uint8_t *from, int64_t count)
{
    for (; count > 0; count--, from += BLOCK) {
        add(sums, from, SECRET, STRIPES);
        for (int i = 0; i < 8; i++)
            sums[i] = (sums[i] ^ (sums[i] >> 47) ^ word(LAST + 8 * i)) * PRIME32_1;
    }
}

#if defined(VECTORS)
__attribute__((target("avx2"))) static __m256i scrambled_avx2(__m256i sums, const uint8_t *secret)
{
    const __m256i prime = _mm256_set1_epi64x(PRIME32_1);
    sums = _mm256_xor_si256(sums, _mm256_srli_epi64(sums, 47));
    sums = _mm256_xor_si256(sums, _mm256_loadu_si256((const __m256i *)secret));
    __m256i above = _mm256_mul_epu32(_mm256_srli_epi64(sums, 32), prime);
    return _mm256_add_epi64(_mm256_mul_epu32(sums, prime), _mm256_slli_epi64(above, 32));
}

__attribute__((target("avx2"))) static void add_avx2(uint64_t sums[8], const uint8_t *from, int64_t count)
{
    __m256i *places = (__m256i *)sums;
    __m256i low = _mm256_loadu_si256(places), high = _mm256_loadu_si256(places + 1);
    for (; count > 0; count--) {
        for (const uint8_t *secret = SECRET; secret < SECRET + 8 * STRIPES; secret += 8, from += STRIPE) {
            __m256i first = _mm256_loadu_si256((const __m256i *)from);
            __m256i second = _mm256_loadu_si256((const __m256i *)(from + 32));
            __m256i keyed = _mm256_xor_si256(first, _mm256_loadu_si256((const __m256i *)secret));
            __m256i other = _mm256_xor_si256(second, _mm256_loadu_si256((const __m256i *)(secret + 32)));
            low = _mm256_add_epi64(low, _mm256_mul_epu32(keyed, _mm256_srli_epi64(keyed, 32)));
            high = _mm256_add_epi64(high, _mm256_mul_epu32(other, _mm256_srli_epi64(other, 32)));
            low = _mm256_add_epi64(low, _mm256_shuffle_epi32(first, 0x4E)); /* neighbours change places */
            high = _mm256_add_epi64(high, _mm256_shuffle_epi32(second, 0x4E));
        }
        low = scrambled_avx2(low, LAST);
        high = scrambled_avx2(high, LAST + 32);
    }
    _mm256_storeu_si256(places, low);
    _mm256_storeu_si256(places + 1, high);
}

__attribute__((target("avx512f"))) static void add_avx512(uint64_t sums[8], const uint8_t *from, int64_t count)
{
    const __m512i prime = _mm512_set1_epi64(PRIME32_1), last = _mm512_loadu_si512(LAST);
    __m512i all = _mm512_loadu_si512(sums);
    for (; count > 0; count--) {
        for (const uint8_t *secret = SECRET; secret < SECRET + 8 * STRIPES; secret += 8, from += STRIPE) {
            __m512i value = _mm512_loadu_si512(from), keyed = _mm512_xor_si512(value, _mm512_loadu_si512(secret));
            all = _mm512_add_epi64(all, _mm512_mul_epu32(keyed, _mm512_srli_epi64(keyed, 32)));
            all = _mm512_add_epi64(all, _mm512_shuffle_epi32(value, 0x4E));
        }
        all = _mm512_xor_si512(_mm512_xor_si512(all, _mm512_srli_epi64(all, 47)), last);
        __m512i above = _mm512_mul_epu32(_mm512_srli_epi64(all, 32), prime);
        all = _mm512_add_epi64(_mm512_mul_epu32(all, prime), _mm512_slli_epi64(above, 32));
    }
    _mm512_storeu_si512(sums, all);
}
#endif

static void add_blocks(uint64_t sums[8], const uint8_t *from, int64_t count)
{
#if defined(VECTORS)
    /* vbmi2: from Ice Lake and Zen 4 on; older ones may lower their clock for multiplications of 512 bits */
    if (WIDEST >= 512 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512vbmi2")) {
        add_avx512(sums, from, count);
        return;
    }
    if (__builtin_cpu_supports("avx2")) {
        add_avx2(sums, from, count);
        return;
    }
#endif
    add_plain(sums, from, count);
}

static uint64_t xxh3(const uint8_t *from, int64_t length)
{
    uint64_t sums[8] = {PRIME32_3, PRIME64_1, PRIME64_2, PRIME64_3, PRIME64_4, PRIME32_2, PRIME64_5, PRIME32_1};
    int64_t blocks = (length - 1) / BLOCK, left = length - blocks * BLOCK;
    add_blocks(sums, from, blocks);
    from += blocks * BLOCK;
    add(sums, from, SECRET, (left - 1) / STRIPE);
    add(sums, from + left - STRIPE, LAST - 7, 1);
    uint64_t digest = (uint64_t)length * PRIME64_1;
    for (int i = 0; i < 4; i++) {
        unsigned __int128 product = (unsigned __int128)(sums[2 * i] ^ word(SECRET + 11 + 16 * i)) *
                                    (sums[2 * i + 1] ^ word(SECRET + 19 + 16 * i));
        digest += (uint64_t)product ^ (uint64_t)(product >> 64);
    }
    digest ^= digest >> 37;
    digest *= 0x165667919E3779F9;
    return digest ^ (digest >> 32);
}

/* A process's memory of samples, as arena.py describes it: `used` above `size` says that one found no room. */
struct room {
    uint8_t *base;
    int64_t size, used;
};

/* An open shard, as preads.py describes it: a descriptor, negative where nothing can be read, and of each of its `rows`
 * the member's place, its XXH3, whether it was taken down and, if samples are kept, where in `room` it lies. */
struct place {
    int64_t descriptor, rows;
    const int64_t *offsets;
    const uint64_t *checksums;
    const uint8_t *dead;
    int64_t *kept;
    struct room *room;
};

static int64_t pread_all(int descriptor, char *target, int64_t length, int64_t offset)
{
    int64_t got = 0;
    while (got < length) {
        ssize_t n = pread(descriptor, target + got, length - got, offset + got);
        if (n < 0 && errno == EINTR)
            continue;
        if (n < 0)
            return -errno;
        if (n == 0)
            break;
        got += n;
    }
    return got;
}

/* Where `row` lies in the room's memory, all of its bytes written; NULL: it is not there. */
static const uint8_t *find(const struct place *place, int64_t row)
{
    int64_t at = place->kept ? __atomic_load_n(&place->kept[row], __ATOMIC_ACQUIRE) : NOWHERE;
    return at >= 0 ? place->room->base + at : NULL;
}

/* Keeps a good row, if there is room. Of threads that have read it at once the first does; the others do not wait. */
static void keep(const struct place *place, int64_t row, const char *from, int64_t length)
{
    struct room *room = place->room;
    int64_t at = NOWHERE, lines = (length + LINE - 1) / LINE * LINE;
    if (!place->kept || __atomic_load_n(&room->used, __ATOMIC_RELAXED) > room->size ||
        !__atomic_compare_exchange_n(&place->kept[row], &at, ON_ITS_WAY, 0, __ATOMIC_RELAXED, __ATOMIC_RELAXED))
        return;
    at = __atomic_fetch_add(&room->used, lines, __ATOMIC_RELAXED);
    if (at + lines <= room->size)
        memcpy(room->base + at, from, length);
    else
        at = NOWHERE;
    __atomic_store_n(&place->kept[row], at, __ATOMIC_RELEASE);
}

/* For each of `count` samples: the `length` bytes of row `rows[i]` of `*places[i]` go to `target + i * pitch`;
 * `got[i]` is the number of bytes read, less than `length` only at the end of the file, or -errno; 0 where there is
 * nothing to read, -EINVAL where the shard has no such row. `expected[i]` is the checksum that it ought to have; where
 * it came out of memory it is not set. Into `bad` come the indexes of those that did not come whole or have another
 * checksum, which of up to SHORT bytes nobody looks at here; returns how many these are. Good ones of more bytes are
 * kept, where there is room, and from then on come out of memory: they were checked when they came in. */
int64_t bigdiff_read_members(const struct place *const *places, const int64_t *rows, int64_t count, char *target,
                             int64_t pitch, int64_t length, int64_t *got, uint64_t *expected, int64_t *bad)
{
    int64_t found = 0;
    for (int64_t i = 0; i < count; i++, target += pitch) {
        const struct place *place = places[i];
        int64_t row = rows[i];
        int has = row >= 0 && row < place->rows, alive = has && place->descriptor >= 0 && !place->dead[row];
        const uint8_t *kept = alive ? find(place, row) : NULL;
        got[i] = has ? 0 : -EINVAL;
        if (kept) {
            memcpy(target, kept, length);
            got[i] = length;
            continue;
        }
        expected[i] = has ? place->checksums[row] : 0;
        if (alive)
            got[i] = pread_all((int)place->descriptor, target, length, place->offsets[row]);
        if (got[i] != length || (length > SHORT && xxh3((const uint8_t *)target, length) != expected[i]))
            bad[found++] = i;
        else if (length > SHORT)
            keep(place, row, target, length);
    }
    return found;
}

/* Asks for `lengths[i]` bytes at `offsets[i]` of `descriptors[i]` to be read into the page cache, and does not wait for
 * them, but where the disk's queue is full. The kernel cuts a longer request silently at the larger of the device's
 * read_ahead_kb and its largest transfer: 128 KiB is the least of the usual ones. It is advice: nothing fails. */
void bigdiff_ask(const int32_t *descriptors, const int64_t *offsets, const int64_t *lengths, int64_t count)
{
    const int64_t piece = 128 << 10;
    for (int64_t i = 0; i < count; i++)
        for (int64_t at = 0; at < lengths[i]; at += piece) {
            int64_t left = lengths[i] - at;
            posix_fadvise(descriptors[i], offsets[i] + at, left < piece ? left : piece, POSIX_FADV_WILLNEED);
        }
}
