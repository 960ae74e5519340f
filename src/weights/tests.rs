use super::*;

fn some_tensors() -> BTreeMap<String, Tensor> {
    let a = Tensor::from_vec(vec![1f32, -2.5, 3.25, 0.0, 5.0, 6.0], (2, 3), &Device::Cpu).unwrap();
    BTreeMap::from([("a.weight".to_string(), a.clone()), ("b".to_string(), a.flatten_all().unwrap())])
}

#[test]
fn saving_and_opening_gives_back_tensors_and_metadata() {
    let dir = tempfile::tempdir().unwrap();
    let metadata = BTreeMap::from([("seed".to_string(), "7".to_string())]);
    for dtype in [DType::F32, DType::F16, DType::BF16] {
        let path = dir.path().join(format!("{dtype:?}.safetensors"));
        let digest = save(&path, &some_tensors(), dtype, &metadata).unwrap();
        assert_eq!(
            digest,
            save(&path, &some_tensors(), dtype, &metadata).unwrap(),
            "same tensors, same bytes"
        );
        let weights = Weights::open_checked(&path, &digest).unwrap();
        assert_eq!(weights.metadata(), &metadata);
        let vb = weights.builder(DType::F32, &Device::Cpu);
        let back = vb.pp("a").get((2, 3), "weight").unwrap().to_vec2::<f32>().unwrap();
        assert_eq!(back, vec![vec![1.0, -2.5, 3.25], vec![0.0, 5.0, 6.0]], "these are exact in every dtype");
    }
}

#[test]
fn faults_name_file_key_expected_and_found() {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("w.safetensors");
    save(&path, &some_tensors(), DType::F32, &BTreeMap::new()).unwrap();
    let vb = Weights::open(&path).unwrap().builder(DType::F32, &Device::Cpu);
    let fault: Error = vb.get((3, 2), "a.weight").unwrap_err().into();
    let text = fault.to_string();
    assert!(matches!(fault, Error::Weights { .. }));
    assert!(text.contains("w.safetensors") && text.contains("[2, 3]") && text.contains("[3, 2]"), "{text}");
    let text = Error::from(vb.get(3, "a.weigth").unwrap_err()).to_string();
    assert!(
        text.contains("no tensor `a.weigth`") && text.contains("nearest") && text.contains("`a.weight`"),
        "{text}"
    );

    let whole = std::fs::read(&path).unwrap();
    for keep in [0, 5, 20, whole.len() - 1] {
        std::fs::write(&path, &whole[..keep]).unwrap();
        let text = Weights::open(&path).unwrap_err().to_string();
        assert!(text.contains("not a complete safetensors file") && text.contains("again"), "{keep}: {text}");
    }
    std::fs::write(&path, &whole).unwrap();
    let text = Weights::open_checked(&path, &Digest::of(b"other")).unwrap_err().to_string();
    assert!(text.contains("SHA-256") && text.contains("manifest"), "{text}");
    assert!(matches!(Weights::open(dir.path().join("absent.safetensors")), Err(Error::Io { .. })));
    let pth = dir.path().join("torn.pth");
    std::fs::write(&pth, &whole).unwrap();
    assert!(Weights::open(&pth).unwrap_err().to_string().contains("not a PyTorch zip checkpoint"));
}

#[test]
fn variables_depend_on_seed_and_name_alone() {
    let randn = Init::Randn { mean: 0.0, stdev: 0.5 };
    let make = |seed: u64, names: &[&str]| {
        let trainable = Trainable::new(Seed::new(seed));
        let vb = trainable.builder(&Device::Cpu);
        for name in names {
            vb.get_with_hints((4, 50), name, randn).unwrap();
        }
        trainable
            .tensors()
            .into_iter()
            .map(|(n, t)| (n, t.to_vec2::<f32>().unwrap()))
            .collect::<BTreeMap<_, _>>()
    };
    let (one, two) = (make(1, &["x", "y"]), make(1, &["y", "z", "x"]));
    assert_eq!(one["x"], two["x"]);
    assert_eq!(one["y"], two["y"]);
    assert_ne!(one["x"], one["y"]);
    assert_ne!(one["x"], make(2, &["x"])["x"]);
    let mean_square = one["x"].iter().flatten().map(|v| v * v).sum::<f32>() / 200.0;
    assert!((mean_square.sqrt() - 0.5).abs() < 0.1, "{mean_square}");
}

#[test]
fn asking_twice_gives_the_same_variable() {
    let trainable = Trainable::new(Seed::new(1));
    let vb = trainable.builder(&Device::Cpu);
    vb.get_with_hints(3, "x", candle_nn::init::ONE).unwrap();
    vb.get_with_hints(3, "x", candle_nn::init::ZERO).unwrap();
    assert_eq!(trainable.tensors()["x"].to_vec1::<f32>().unwrap(), [1.0; 3]);
    assert!(vb.get(4, "x").is_err());
}

#[test]
fn what_a_tuned_file_lacks_comes_from_the_one_beneath() {
    let dir = tempfile::tempdir().unwrap();
    let (over, beneath) =
        (dir.path().join("tuned/over.safetensors"), dir.path().join("base/beneath.safetensors"));
    let one = BTreeMap::from([("b".to_string(), Tensor::ones(6, DType::F32, &Device::Cpu).unwrap())]);
    let digest = save(&beneath, &some_tensors(), DType::F32, &BTreeMap::new()).unwrap();
    let named = Beneath { file: "../base/beneath.safetensors".into(), digest };
    let metadata = BTreeMap::from([(BENEATH.to_string(), serde_json::to_string(&named).unwrap())]);
    save(&over, &one, DType::F32, &metadata).unwrap();
    let weights = Weights::open(&over).unwrap();
    assert_eq!(weights.names(), ["b"]);
    let vb = weights.builder(DType::F32, &Device::Cpu);
    assert_eq!(vb.get(6, "b").unwrap().to_vec1::<f32>().unwrap(), [1.0; 6]);
    assert_eq!(vb.get((2, 3), "a.weight").unwrap().to_vec2::<f32>().unwrap()[0], [1.0, -2.5, 3.25]);
    assert!(vb.contains_tensor("a.weight") && !vb.contains_tensor("c"));
    assert!(vb.get(6, "c").is_err());
    save(&beneath, &one, DType::F32, &BTreeMap::new()).unwrap();
    let text = Weights::open(&over).unwrap_err().to_string();
    assert!(text.contains("beneath.safetensors") && text.contains("SHA-256"), "{text}");
}
