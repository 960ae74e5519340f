//! What an endpoint's reply says: a letter and its log-probability, a refusal, or something else.

use serde_json::{Value, json};

use crate::judge::Answer;
use crate::judgement::{Outcome, Slot};

/// How a judge is told to answer.
pub(in crate::judge) fn form(json_schema: bool) -> &'static str {
    match json_schema {
        true => r#"Answer with the JSON object {"answer": "A"} or {"answer": "B"}."#,
        false => "Answer with one letter, A or B, and nothing else.",
    }
}

/// The schema of such an object, as `response_format`.
pub(super) fn schema() -> Value {
    json!({
        "type": "json_schema",
        "json_schema": {
            "name": "preference",
            "strict": true,
            "schema": {
                "type": "object",
                "properties": {"answer": {"type": "string", "enum": ["A", "B"]}},
                "required": ["answer"],
                "additionalProperties": false,
            },
        },
    })
}

/// Reads a reply.
///
/// # Errors
/// Where it is no chat completion: nothing was answered.
pub(super) fn read(reply: &Value, json_schema: bool) -> Result<Answer, String> {
    let choice = reply.get("choices").and_then(|choices| choices.get(0));
    let Some((choice, message)) = choice.and_then(|choice| Some((choice, choice.get("message")?))) else {
        let said = reply
            .pointer("/error/message")
            .and_then(Value::as_str)
            .map_or_else(|| reply.to_string(), str::to_owned);
        return Err(format!("the answer is JSON, but no chat completion: {said}"));
    };
    let text = text(message.get("content").unwrap_or(&Value::Null));
    let finish = choice.get("finish_reason").and_then(Value::as_str).unwrap_or_default();
    let refusal = message.get("refusal").and_then(Value::as_str).filter(|words| !words.is_empty());
    let outcome = match (refusal, finish) {
        (Some(words), _) => Outcome::Refusal { raw: words.to_owned() },
        (None, "content_filter") => Outcome::Refusal { raw: format!("(content filter) {text}") },
        (None, "length") if letter(&text, json_schema).is_none() => {
            Outcome::Unreadable { raw: format!("(cut at max_tokens) {text}") }
        }
        _ => match letter(&text, json_schema) {
            Some(slot) => Outcome::Verdict { slot, log_odds: log_odds(choice) },
            None if declines(&text) => Outcome::Refusal { raw: text },
            None => Outcome::Unreadable { raw: text },
        },
    };
    let tokens = |name: &str| reply.pointer(&format!("/usage/{name}")).and_then(Value::as_u64);
    let says = |name: &str| reply.get(name).and_then(Value::as_str);
    let endpoint: Vec<&str> = [says("model"), says("system_fingerprint")].into_iter().flatten().collect();
    Ok(Answer {
        outcome,
        tokens_in: tokens("prompt_tokens"),
        tokens_out: tokens("completion_tokens"),
        endpoint: (!endpoint.is_empty()).then(|| endpoint.join(" ")),
    })
}

/// A message's text, which may come in parts.
fn text(content: &Value) -> String {
    match content {
        Value::String(text) => text.clone(),
        Value::Array(parts) => {
            parts.iter().filter_map(|part| part.get("text").and_then(Value::as_str)).collect::<String>()
        }
        _ => String::new(),
    }
}

/// The letter that an answer is. Prose that mentions a letter is no answer: nobody knows what it means by it.
pub(in crate::judge) fn letter(text: &str, json_schema: bool) -> Option<Slot> {
    let text = text.rsplit_once("</think>").map_or(text, |(_, answer)| answer).trim();
    let of = |word: &str| match word {
        "A" | "a" => Some(Slot::A),
        "B" | "b" => Some(Slot::B),
        _ => None,
    };
    let fenced = text.strip_prefix("```json").or_else(|| text.strip_prefix("```"));
    let inner = fenced.and_then(|text| text.strip_suffix("```")).unwrap_or(text);
    if let Ok(Value::Object(object)) = serde_json::from_str::<Value>(inner) {
        let answer = object.get("answer").and_then(Value::as_str)?;
        return (object.len() == 1).then(|| of(answer)).flatten();
    }
    if json_schema || inner.trim_start().starts_with('{') {
        return None;
    }
    let words: Vec<&str> =
        text.split(|c: char| !c.is_alphanumeric()).filter(|word| !word.is_empty()).collect();
    match words.as_slice() {
        [letter] => of(letter),
        [word, letter] if ["answer", "image"].contains(&word.to_lowercase().as_str()) => of(letter),
        _ => None,
    }
}

/// Whether words decline to answer. Only what holds no answer is asked this.
pub(in crate::judge) fn declines(text: &str) -> bool {
    let text = text.to_lowercase().replace('’', "'");
    let phrases = [
        "i can't",
        "i cannot",
        "i can not",
        "i'm sorry",
        "i am sorry",
        "unable to",
        "i won't",
        "i will not",
        "not able to",
    ];
    phrases.iter().any(|phrase| text.contains(phrase))
}

/// ln P(A) − ln P(B) at the token that is the letter.
///
/// Spellings of a letter (with a space or quotes) count together. Where the other letter is not among the tokens listed, its
/// probability is at most that of the last one listed, and taken to be that: the odds are then at least as far from even.
fn log_odds(choice: &Value) -> Option<f64> {
    let tokens = choice.pointer("/logprobs/content")?.as_array()?;
    let spelled = |token: &Value| {
        let token = token.get("token")?.as_str()?.trim_matches(|c: char| c.is_whitespace() || c == '"');
        match token {
            "A" => Some(Slot::A),
            "B" => Some(Slot::B),
            _ => None,
        }
    };
    let token = tokens.iter().find(|token| spelled(token).is_some())?;
    let listed = token.get("top_logprobs")?.as_array()?;
    let of = |entry: &Value| entry.get("logprob")?.as_f64().filter(|logprob| logprob.is_finite());
    let sum = |slot: Slot| {
        let all = listed.iter().filter(|entry| spelled(entry) == Some(slot)).filter_map(of);
        all.map(f64::exp).reduce(|a, b| a + b).map(f64::ln)
    };
    let least = listed.iter().filter_map(of).reduce(f64::min)?;
    let odds = match (sum(Slot::A), sum(Slot::B)) {
        (Some(a), Some(b)) => a - b,
        (Some(a), None) if listed.len() > 1 => a - least,
        (None, Some(b)) if listed.len() > 1 => least - b,
        _ => return None,
    };
    odds.is_finite().then_some(odds)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_an_answer_is_an_answer() {
        for (text, as_json, as_letter) in [
            (r#"{"answer": "A"}"#, Some(Slot::A), Some(Slot::A)),
            ("```json\n{\"answer\": \"B\"}\n```", Some(Slot::B), Some(Slot::B)),
            ("<think>A or B?</think> B.", None, Some(Slot::B)),
            ("Image A", None, Some(Slot::A)),
            ("**Answer: B**", None, Some(Slot::B)),
            (r#"{"answer": "C"}"#, None, None),
            (r#"{"choice": "A"}"#, None, None),
            (r#"{"answer": "A", "sure": false}"#, None, None),
            (r#"{"answer": "A""#, None, None),
            ("A is a little better than B", None, None),
            ("", None, None),
        ] {
            assert_eq!((letter(text, true), letter(text, false)), (as_json, as_letter), "{text}");
        }
    }

    #[test]
    fn replies_end_in_a_state() {
        let reply = |message: Value, finish: &str| {
            json!({"choices": [{"message": message, "finish_reason": finish}], "usage": {"prompt_tokens": 9, "completion_tokens": 2},
                   "model": "m-1", "system_fingerprint": "fp"})
        };
        let state = |message: Value, finish: &str| {
            let answer = read(&reply(message, finish), true).unwrap();
            assert_eq!((answer.tokens_in, answer.tokens_out), (Some(9), Some(2)));
            assert_eq!(answer.endpoint.as_deref(), Some("m-1 fp"));
            answer.outcome.state()
        };
        assert_eq!(state(json!({"content": r#"{"answer": "A"}"#}), "stop"), "verdict");
        assert_eq!(
            state(json!({"content": [{"type": "text", "text": r#"{"answer": "A"}"#}]}), "stop"),
            "verdict"
        );
        assert_eq!(state(json!({"content": null, "refusal": "No."}), "stop"), "refusal");
        assert_eq!(state(json!({"content": ""}), "content_filter"), "refusal");
        assert_eq!(state(json!({"content": "I’m sorry, but I can’t compare these."}), "stop"), "refusal");
        assert_eq!(state(json!({"content": "{\"ans"}), "length"), "unreadable");
        assert_eq!(state(json!({"content": "Both are nice."}), "stop"), "unreadable");
        for none in
            [json!({}), json!([]), json!({"choices": []}), json!({"error": {"message": "overloaded"}})]
        {
            assert!(read(&none, true).unwrap_err().contains("no chat completion"));
        }
    }

    #[test]
    fn the_odds_are_those_of_the_letter_in_every_spelling() {
        let choice = |listed: Value| {
            json!({"logprobs": {"content": [
                {"token": "{\"", "top_logprobs": []},
                {"token": "answer", "top_logprobs": []},
                {"token": "A", "top_logprobs": listed},
            ]}})
        };
        let listed = |tokens: &[(&str, f64)]| {
            let entry = |&(token, p): &(&str, f64)| json!({"token": token, "logprob": p.ln()});
            choice(Value::Array(tokens.iter().map(entry).collect()))
        };
        let near = |choice: Value, expected: f64| {
            let odds = log_odds(&choice).unwrap();
            assert!((odds - expected).abs() < 1e-12, "{odds}, expected {expected}");
        };
        near(listed(&[("A", 0.5), (" A", 0.1), ("B", 0.3), ("The", 0.05)]), 2f64.ln());
        near(listed(&[("A", 0.9), ("The", 0.01), ("An", 0.001)]), 900f64.ln());
        assert_eq!(log_odds(&listed(&[("A", 0.9)])), None);
        assert_eq!(log_odds(&json!({"logprobs": null})), None);
    }
}
