use super::*;

#[test]
fn a_wish_to_wait_is_seconds_or_a_date() {
    let now = httpdate::parse_http_date("Sun, 06 Nov 1994 08:49:37 GMT").unwrap();
    assert_eq!(wait("3", now), Some(Duration::from_secs(3)));
    assert_eq!(wait("0.25", now), Some(Duration::from_millis(250)));
    assert_eq!(wait("Sun, 06 Nov 1994 08:50:07 GMT", now), Some(Duration::from_secs(30)));
    assert_eq!(wait("Sun, 06 Nov 1994 08:49:07 GMT", now), Some(Duration::ZERO));
    assert_eq!((wait("-1", now), wait("soon", now)), (None, None));
}

#[test]
fn addresses_are_shown_without_secrets_and_name_the_backend() {
    assert_eq!(shown("https://me:secret@h.org:1/v1?key=2"), "https://h.org:1/v1");
    assert_eq!(shown("http://h"), "http://h");
    assert_eq!(host("https://me:secret@h.org:1/v1"), "h.org");
    assert_eq!(host("http://[::1]:8000/v1"), "[::1]");
    assert_eq!(host("http://127.0.0.1:8000"), "127.0.0.1");
}

#[test]
fn a_request_holds_what_is_configured_and_no_more() {
    let text = "base_url = \"http://h/v1/\"\nmodel = \"m\"\ntemperature = -1.0\nseed = 5\ndetail = \"low\"\n\
                max_tokens_field = \"max_completion_tokens\"";
    let endpoint = OpenAi::open(toml::from_str(text).unwrap(), |_| Some("sk-secret".into())).unwrap();
    assert_eq!(endpoint.url, "http://h/v1/chat/completions");
    assert!(!format!("{endpoint:?}").contains("secret"));
    let images = ["x".to_owned(), "y".to_owned()];
    let body = endpoint.body(Some("s"), &["a ", "", " b"], &images, 2, Abilities::default());
    let content = &body["messages"][1]["content"];
    assert_eq!(content.as_array().unwrap().len(), 4, "{content}");
    assert_eq!(content[1]["image_url"], json!({"url": "x", "detail": "low"}));
    assert_eq!(body["max_completion_tokens"], 64);
    assert_eq!((&body["seed"], body.get("temperature"), body.get("logprobs")), (&json!(7), None, None));
    let able = Abilities { json_schema: true, top_logprobs: 5 };
    let body = endpoint.body(None, &["a"], &[], 0, able);
    assert_eq!((&body["top_logprobs"], &body["response_format"]["type"]), (&json!(5), &json!("json_schema")));
    assert!(OpenAi::open(toml::from_str(text).unwrap(), |_| Some("a\nb".into())).is_err());
}

#[test]
fn a_status_means_what_it_means() {
    let text = "base_url = \"http://h/v1\"\nmodel = \"m\"";
    let endpoint = OpenAi::open(toml::from_str(text).unwrap(), |_| Some("sk-secret".into())).unwrap();
    let kind = |status: u16, body: Value| match endpoint
        .refused(status, None, &body, body.to_string().as_bytes())
        .attempt
    {
        Attempt::Answer(answer) => answer.outcome.state(),
        Attempt::Again { crowded: true, .. } => "fewer",
        Attempt::Again { .. } => "again",
        Attempt::Never(reason) => {
            assert!(!reason.contains("sk-secret"), "{reason}");
            "never"
        }
        Attempt::Stop(_) => "stop",
    };
    let error = |code: &str| json!({"error": {"message": "sk-secret is no good", "code": code}});
    for (status, code, expected) in [
        (429, "rate_limit_exceeded", "fewer"),
        (429, "insufficient_quota", "stop"),
        (503, "", "fewer"),
        (500, "", "again"),
        (501, "", "never"),
        (401, "", "stop"),
        (404, "", "stop"),
        (302, "", "stop"),
        (400, "", "never"),
        (400, "content_policy_violation", "refusal"),
        (413, "", "never"),
    ] {
        assert_eq!(kind(status, error(code)), expected, "{status} {code}");
    }
}
