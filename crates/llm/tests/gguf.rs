//! Model files: values equal to the reference to the bit, and every damaged file an error that names the place.

#![expect(clippy::unwrap_used, reason = "a test fails by panicking")]

use rallrec_llm::{
    gguf::{GgufFile, Value},
    quants::{Format, dequantize},
};
use std::{io::Write, path::Path};

fn text(bytes: &mut Vec<u8>, text: &str) {
    bytes.extend((text.len() as u64).to_le_bytes());
    bytes.extend(text.as_bytes());
}

/// A file with two metadata keys and two tensors, 288 bytes of data.
fn small_file() -> Vec<u8> {
    let mut bytes = b"GGUF".to_vec();
    bytes.extend(3_u32.to_le_bytes());
    bytes.extend(2_u64.to_le_bytes());
    bytes.extend(2_u64.to_le_bytes());
    text(&mut bytes, "general.name");
    bytes.extend(8_u32.to_le_bytes());
    text(&mut bytes, "tiny");
    text(&mut bytes, "list");
    bytes.extend(9_u32.to_le_bytes());
    bytes.extend(5_u32.to_le_bytes());
    bytes.extend(2_u64.to_le_bytes());
    bytes.extend([7_i32.to_le_bytes(), (-7_i32).to_le_bytes()].concat());
    for (name, shape, kind, offset) in [("a", &[3_u64, 2][..], 0_u32, 0_u64), ("b", &[64, 4], 3, 32)] {
        text(&mut bytes, name);
        bytes.extend((shape.len() as u32).to_le_bytes());
        shape.iter().for_each(|size| bytes.extend(size.to_le_bytes()));
        bytes.extend(kind.to_le_bytes());
        bytes.extend(offset.to_le_bytes());
    }
    bytes.resize(bytes.len().next_multiple_of(32), 0);
    (0..6).for_each(|i| bytes.extend((i as f32).to_le_bytes()));
    bytes.resize(bytes.len() + 8 + 8 * 20, 1);
    bytes
}

fn open(bytes: &[u8]) -> Result<GgufFile, String> {
    let mut file = tempfile::NamedTempFile::with_suffix(".gguf").unwrap();
    file.write_all(bytes).unwrap();
    GgufFile::open(file.path()).map_err(|error| {
        let message = error.to_string();
        assert!(message.contains(".gguf"), "no file in {message}");
        message
    })
}

#[test]
fn metadata_and_tensors_are_read() {
    let file = open(&small_file()).unwrap();
    assert_eq!(file.text("general.name").unwrap(), Some("tiny"));
    assert_eq!(file.get("list"), Some(&Value::Array(vec![Value::Signed(7), Value::Signed(-7)])));
    assert_eq!(file.tensor("a").unwrap().shape, [2, 3]);
    assert_eq!(file.values("a", &[2, 3]).unwrap(), [0.0, 1.0, 2.0, 3.0, 4.0, 5.0]);
    assert_eq!(file.values("b", &[4, 64]).unwrap().len(), 256);
    let message = file.values("a", &[3, 2]).unwrap_err().to_string();
    assert!(message.contains("tensor a has shape [2, 3], not [3, 2]"), "{message}");
    assert!(file.values("c", &[1]).unwrap_err().to_string().contains("tensor c is missing"));
}

#[test]
fn a_file_cut_anywhere_is_refused() {
    let bytes = small_file();
    for length in 0..bytes.len() {
        let message = open(&bytes[..length]).err().unwrap_or_else(|| panic!("cut to {length} bytes, it was accepted"));
        let data = bytes.len() - 24 - 8 - 160;
        if length >= data {
            assert!(message.contains("tensor"), "cut to {length} bytes: {message}");
        }
    }
}

#[test]
fn a_damaged_byte_never_panics() {
    let bytes = small_file();
    for at in 0..bytes.len() {
        for damage in [0x00, 0xFF, bytes[at] ^ 0x80, bytes[at].wrapping_add(1)] {
            let mut damaged = bytes.clone();
            damaged[at] = damage;
            if let Ok(file) = open(&damaged) {
                for name in file.tensor_names() {
                    let shape = &file.tensor(name).unwrap().shape;
                    file.values(name, shape).unwrap();
                }
            }
        }
    }
}

#[test]
fn what_is_wrong_is_named() {
    let cases: [(usize, &[u8], &str); 4] = [
        (0, b"GGML", "does not begin with GGUF"),
        (4, &[9], "version 9 is not supported"),
        (8, &[0xFF; 8], "does not fit"),
        (16, &[0xFF; 8], "does not fit"),
    ];
    for (at, damage, expected) in cases {
        let mut bytes = small_file();
        bytes[at..at + damage.len()].copy_from_slice(damage);
        let message = open(&bytes).err().unwrap();
        assert!(message.contains(expected), "{message}");
    }
    let missing = GgufFile::open(Path::new("no/such.gguf")).err().unwrap().to_string();
    assert!(missing.contains("no/such.gguf"), "{missing}");
}

#[test]
fn values_equal_the_reference_to_the_bit() {
    let fixture =
        std::fs::read(Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/quants.safetensors")).unwrap();
    let fixture = safetensors::SafeTensors::deserialize(&fixture).unwrap();
    let formats = [
        ("F16", Format::F16),
        ("BF16", Format::BF16),
        ("Q4_0", Format::Q4_0),
        ("Q4_1", Format::Q4_1),
        ("Q5_0", Format::Q5_0),
        ("Q5_1", Format::Q5_1),
        ("Q8_0", Format::Q8_0),
        ("Q2_K", Format::Q2K),
        ("Q3_K", Format::Q3K),
        ("Q4_K", Format::Q4K),
        ("Q5_K", Format::Q5K),
        ("Q6_K", Format::Q6K),
    ];
    for (name, format) in formats {
        let bytes = fixture.tensor(&format!("{name}.bytes")).unwrap();
        let expected = fixture.tensor(&format!("{name}.values")).unwrap();
        let expected: Vec<u32> =
            expected.data().chunks_exact(4).map(|v| u32::from_le_bytes(v.try_into().unwrap())).collect();
        let mut values = vec![0.0; expected.len()];
        dequantize(format, bytes.data(), &mut values);
        let values: Vec<u32> = values.into_iter().map(f32::to_bits).collect();
        assert_eq!(values, expected, "{name}");
    }
}
