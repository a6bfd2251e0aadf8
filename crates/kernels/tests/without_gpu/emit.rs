//! Every kernel as CUDA C++, with no device: the compiler of `cubecl-cuda` on properties like an H100's.

use cubecl::{
    ir::{
        AddressType, DeviceIdentity, DeviceProperties, HardwareProperties, MemoryDeviceProperties, TargetProperties,
        VectorSize,
        features::{Features, Plane},
    },
    prelude::*,
};
use cubecl_cpp::{
    cuda::{arch::CudaArchitecture, mma::CudaCmmaCompiler},
    register_supported_types,
    shared::{CompilationOptions, CppCompiler, CppSupportedFeatures, register_wmma_features},
    target::Cuda,
};
use std::sync::Arc;

/// What a kernel's constructor wants to know of the device and of its launch.
pub(crate) type Setup = (KernelSettings, Arc<DeviceProperties>, Arc<TargetProperties>);

/// For cubes of some units, and places in buffers of 32 or 64 bits.
pub(crate) fn setup(units: u32, places: AddressType) -> Setup {
    let mut properties = DeviceProperties::new(
        Features::default(),
        MemoryDeviceProperties::new(u64::MAX, 512),
        HardwareProperties {
            load_width: 128,
            vector_register_count: None,
            plane_size_min: 32,
            plane_size_max: 32,
            max_bindings: 1024,
            max_shared_memory_size: 232_448,
            max_cube_count: (i32::MAX as u32, 65_535, 65_535),
            max_units_per_cube: 1024,
            max_cube_dim: (1024, 1024, 64),
            num_streaming_multiprocessors: Some(132),
            num_tensor_cores: Some(4),
            min_tensor_cores_dim: Some(8),
            num_cpu_cores: None,
            last_level_cache_size: None,
            max_vector_size: VectorSize::MAX,
            cube_mma_reserved_shared_memory: 0,
        },
        cubecl::profile::TimingMethod::Device,
        DeviceIdentity { name: "none".into(), fingerprint: "none".into(), physical: None },
    );
    register_supported_types(&mut properties);
    properties.features.memory_reinterpret = true;
    properties.features.alignment = true;
    for feature in [Plane::Ops, Plane::Sync, Plane::NonUniformControlFlow] {
        properties.features.plane.insert(feature);
    }
    let architecture = CudaArchitecture { version: 80, tensor_cores: true };
    register_wmma_features(CudaCmmaCompiler::Cpp.supported_cmma_combinations(&architecture), &mut properties);
    let settings = KernelSettings::new(*CubeDim::new_1d(units), ExecutionMode::Unchecked, places);
    (settings, Arc::new(properties), Arc::new(TargetProperties::default()))
}

/// A buffer that is no other argument's.
pub(crate) fn buffer() -> BufferCompilationArg {
    BufferCompilationArg { inplace: None }
}

/// An emitted kernel.
pub(crate) struct Kernel {
    /// Name of its function.
    pub(crate) symbol: String,
    /// Units of a cube.
    pub(crate) units: u32,
    /// Shared memory of a cube.
    pub(crate) shared_bytes: usize,
    pub(crate) source: String,
}

/// The source as `cubecl-cuda` gives it to NVRTC for compute capability 8.0 and above.
pub(crate) fn compiled(kernel: &impl CubeKernel, units: u32) -> Kernel {
    let supports_features =
        CppSupportedFeatures { fast_math: true, dp4a: true, grid_constants: true, ..Default::default() };
    let options = CompilationOptions { supports_features, ..Default::default() };
    let compiled = cubecl::Compiler::compile(&mut CppCompiler::<Cuda>::default(), kernel.define(), &options);
    let compiled = compiled.expect("the kernel compiles to CUDA C++");
    let source = compiled.source;
    let name = source.split_once("__global__").and_then(|(_, rest)| rest.split_once('(')?.1.split_once('('));
    let symbol = name.and_then(|(before, _)| before.rsplit([' ', ')']).next()).expect("a kernel has a name").into();
    Kernel { symbol, units, shared_bytes: compiled.shared_memory_size, source }
}

/// `emit!(units, module::function: arguments...)`: a kernel from its parameters, `buffer()` for a slice and `()` for a
/// scalar. `wide` before them for a kernel whose places in buffers have 64 bits.
macro_rules! emit {
    (wide $($rest:tt)*) => { crate::emit::emit!(@ cubecl::ir::AddressType::U64, $($rest)*) };
    (@ $places:expr, $units:expr, $module:ident::$function:ident::$kernel:ident, $($argument:expr),*) => {{
        let (settings, device, target) = crate::emit::setup($units, $places);
        let kernel = rallrec_kernels::$module::$function::$kernel::new(settings, device, target, $($argument),*);
        crate::emit::compiled(&kernel, $units)
    }};
    ($($rest:tt)*) => { crate::emit::emit!(@ cubecl::ir::AddressType::U32, $($rest)*) };
}
pub(crate) use emit;
