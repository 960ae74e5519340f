use super::*;

fn artefact(text: &str) -> Artefact {
    toml::from_str(text).unwrap()
}

#[test]
fn entries_are_checked_as_they_are_written() {
    let good = "repository = \"a/b\"\nfiles = [\"c/d.json\"]\nlicence = \"mit\"\n";
    assert_eq!(artefact(good).fault(), None);
    assert_eq!(artefact(good).source(), "models/a/b@main");
    for (from, to, part) in [
        ("a/b", "a/b/c", "owner/name"),
        ("a/b", "../b", "owner/name"),
        ("c/d.json", "/etc/passwd", "below the repository"),
        ("c/d.json", "c/../../d", "below the repository"),
        ("[\"c/d.json\"]", "[]", "at least one file"),
        ("licence", "revision = \"../x\"\nlicence", "revision"),
        ("licence", "kind = \"url\"\nlicence", "https://"),
    ] {
        let fault = artefact(&good.replace(from, to)).fault().unwrap_or_default();
        assert!(fault.contains(part), "{to}: {fault}");
    }
}

#[test]
fn the_environment_is_honoured() {
    let hub = |pairs: &'static [(&'static str, &'static str)]| {
        Hub::new("hub.lock", |name| {
            pairs.iter().find(|(known, _)| *known == name).map(|(_, value)| (*value).into())
        })
    };
    let plain = hub(&[("HOME", "/home/me")]).unwrap();
    assert_eq!(plain.folder(), Path::new("/home/me/.cache/huggingface/hub"));
    assert_eq!((plain.endpoint.as_str(), plain.is_offline()), ("https://huggingface.co", false));
    let set = hub(&[
        ("HF_HOME", "/big"),
        ("HF_ENDPOINT", "http://h:1/"),
        ("HF_HUB_OFFLINE", "YES"),
        ("HF_TOKEN", " t "),
    ])
    .unwrap();
    assert_eq!(set.folder(), Path::new("/big/hub"));
    assert_eq!((set.endpoint.as_str(), set.is_offline()), ("http://h:1", true));
    assert_eq!(set.token.as_deref(), Some("t"));
    assert!(!hub(&[("HF_HUB_OFFLINE", "0")]).unwrap().is_offline());
    let message = hub(&[("HF_ENDPOINT", "me:secret@hub")]).unwrap_err().to_string();
    assert!(message.contains("HF_ENDPOINT") && !message.contains("secret"), "{message}");
    assert!(!format!("{:?}", hub(&[("HF_TOKEN", "secret")]).unwrap()).contains("secret"));
}
