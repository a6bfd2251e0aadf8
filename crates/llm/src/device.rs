//! Picks the device to compute on from its name.
//!
//! Devices are enumerated before one is used: Burn's default device picks CUDA whether or not there is a driver, and
//! fails at the first read. It never falls back silently from a device that was asked for by name.

use crate::LlmError;
use burn::tensor::Device;

/// Device for a name: `auto` (the first CUDA device, else the CPU), `cpu`, or `cuda:N`.
///
/// # Errors
/// [`LlmError::Device`] when the name is unknown, this build has no CUDA, or there is no such CUDA device.
pub fn pick_device(name: &str) -> Result<Device, LlmError> {
    match name {
        "cpu" => Ok(Device::flex()),
        "auto" => Ok(cuda_devices().into_iter().next().unwrap_or_else(Device::flex)),
        _ => {
            let index = name.strip_prefix("cuda:").and_then(|index| index.parse::<usize>().ok());
            let Some(index) = index else {
                return Err(no_device(name, "unknown; use auto, cpu or cuda:N, for example cuda:0".into()));
            };
            if !cfg!(feature = "cuda") {
                let what = "this build has no CUDA; build with --features cuda, or use cpu";
                return Err(no_device(name, what.into()));
            }
            let mut devices = cuda_devices();
            if index >= devices.len() {
                let what = format!("this machine has {} CUDA devices; use cpu or auto", devices.len());
                return Err(no_device(name, what));
            }
            Ok(devices.swap_remove(index))
        }
    }
}

/// Number of the CUDA device that [`pick_device`] gives for a name; `None` when it gives another device, or none.
pub fn cuda_index(name: &str) -> Option<usize> {
    match name {
        "auto" => (!cuda_devices().is_empty()).then_some(0),
        _ => name.strip_prefix("cuda:")?.parse().ok(),
    }
}

fn no_device(name: &str, what: String) -> LlmError {
    LlmError::Device { name: name.into(), what }
}

#[cfg(feature = "cuda")]
fn cuda_devices() -> Vec<Device> {
    Device::enumerate(burn::tensor::DeviceType::Cuda).into_vec()
}

#[cfg(not(feature = "cuda"))]
fn cuda_devices() -> Vec<Device> {
    Vec::new()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_cpu_is_always_there() {
        assert_eq!(format!("{:?}", pick_device("cpu").unwrap()), format!("{:?}", Device::flex()));
    }

    #[test]
    fn an_unknown_name_says_what_is_known() {
        let message = pick_device("gpu").unwrap_err().to_string();
        assert!(message.contains("\"gpu\"") && message.contains("cuda:N"), "{message}");
    }

    #[cfg(not(feature = "cuda"))]
    #[test]
    fn without_cuda_a_cuda_device_is_refused_in_plain_words() {
        let message = pick_device("cuda:0").unwrap_err().to_string();
        assert!(message.contains("--features cuda"), "{message}");
        assert_eq!(format!("{:?}", pick_device("auto").unwrap()), format!("{:?}", Device::flex()));
    }
}
