//! Which files of a repository or a folder a model is read from, where nobody names one.

/// All weights in safetensors with configuration and tokenizer; or else the only GGUF file. `name` gives a file's name
/// with its folders: of safetensors and what belongs to them only those outside of folders count.
///
/// # Errors
/// In one line, what there is instead.
pub(super) fn model_files<F>(files: &[F], name: impl Fn(&F) -> &str) -> Result<Vec<&F>, String> {
    let ends = |file: &F, ends: &[&str]| ends.iter().any(|end| name(file).ends_with(end));
    let top: Vec<&F> = files.iter().filter(|f| !name(f).contains('/')).collect();
    if top.iter().any(|f| ends(f, &[".safetensors"])) {
        // Beside the weights that transformers reads some have the same once more, as `consolidated.safetensors`.
        let named = |f: &F| name(f).starts_with("model");
        let usual = top.iter().any(|f| ends(f, &[".safetensors"]) && named(f));
        let weights = |f: &F| ends(f, &[".safetensors"]) && (named(f) || !usual);
        let beside = |f: &F| ends(f, &[".json", ".jinja"]) || name(f) == "merges.txt";
        return Ok(top.into_iter().filter(|f| weights(f) || beside(f)).collect());
    }
    let gguf: Vec<&F> = files.iter().filter(|f| ends(f, &[".gguf"])).collect();
    match gguf.len() {
        1 => Ok(gguf),
        0 => Err("it has weights neither in .safetensors nor in .gguf".into()),
        _ => {
            let names: Vec<&str> = gguf.iter().take(16).map(|f| name(f)).collect();
            Err(format!("it has several .gguf files; add /FILE: {}", names.join(", ")))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn chosen(files: &[&'static str]) -> Result<Vec<&'static str>, String> {
        Ok(model_files(files, |f| f)?.into_iter().copied().collect())
    }

    #[test]
    fn what_a_model_is_read_from_is_chosen() {
        let all = [
            "README.md",
            "config.json",
            "consolidated.safetensors",
            "model-00001-of-00002.safetensors",
            "model-00002-of-00002.safetensors",
            "onnx/model.onnx",
            "original/a.safetensors",
            "pytorch_model.bin",
            "tokenizer.json",
        ];
        let wanted = ["config.json", all[3], all[4], "tokenizer.json"];
        assert_eq!(chosen(&all).unwrap(), wanted);
        assert_eq!(chosen(&["a.safetensors", "config.json"]).unwrap(), ["a.safetensors", "config.json"]);
        assert_eq!(chosen(&["README.md", "x/a.gguf"]).unwrap(), ["x/a.gguf"]);
        assert!(chosen(&["a-Q4.gguf", "a-Q8.gguf"]).unwrap_err().contains("add /FILE: a-Q4.gguf, a-Q8.gguf"));
        assert!(chosen(&["a.bin"]).is_err());
    }
}
