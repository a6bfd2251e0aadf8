// The 16-bit float of CUDA's header of the same name, as far as emitted kernels use it: conversions round to nearest,
// ties to even.
#pragma once
#include <cstdint>
#include <cstring>

struct __nv_bfloat16 {
    std::uint16_t bits;
    __nv_bfloat16() = default;
    explicit __nv_bfloat16(float value) {
        std::uint32_t wide;
        std::memcpy(&wide, &value, 4);
        bool nan = (wide & 0x7fffffff) > 0x7f800000;
        bits = nan ? 0x7fff : (wide + 0x7fff + (wide >> 16 & 1)) >> 16;
    }
    __nv_bfloat16(int value) : __nv_bfloat16(float(value)) {}
    operator float() const {
        std::uint32_t wide = std::uint32_t(bits) << 16;
        float value;
        std::memcpy(&value, &wide, 4);
        return value;
    }
};
