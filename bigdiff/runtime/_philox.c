/* Philox4x32-10 (Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3"), as bigdiff/runtime/seeding.py
 * writes it out in torch's operations. Those need some 0.5 ms for a draw of whatever size, four draws a micro-batch;
 * this needs 15 ns for four words. Loaded through ctypes.
 */
#include <stdint.h>

/* Words 4 b ... 4 b + 3 of sample i, in out[(i * blocks + b) * 4], have the counter (b, low and high half of
 * positions[i], number). */
void bigdiff_philox(uint32_t key0, uint32_t key1, uint32_t number, const int64_t *positions, int64_t count,
                    int64_t blocks, int64_t *out)
{
    for (int64_t i = 0; i < count; i++) {
        for (int64_t block = 0; block < blocks; block++, out += 4) {
            uint32_t c0 = (uint32_t)block, c1 = (uint32_t)positions[i], c3 = number;
            uint32_t c2 = (uint32_t)((uint64_t)positions[i] >> 32), k0 = key0, k1 = key1;
            for (int round = 0; round < 10; round++, k0 += 0x9E3779B9u, k1 += 0xBB67AE85u) {
                uint64_t product0 = (uint64_t)c0 * 0xD2511F53u, product1 = (uint64_t)c2 * 0xCD9E8D57u;
                c0 = (uint32_t)(product1 >> 32) ^ c1 ^ k0;
                c2 = (uint32_t)(product0 >> 32) ^ c3 ^ k1;
                c1 = (uint32_t)product1;
                c3 = (uint32_t)product0;
            }
            out[0] = c0, out[1] = c1, out[2] = c2, out[3] = c3;
        }
    }
}
