//! All questions of a table: which are answered already, what the others may cost, and asking them.

use std::collections::HashMap;
use std::sync::Mutex;
use std::sync::PoisonError;

use super::budget::{Budget, Caps, Spent};
use super::cache::{Answer, Cache};
use super::question::{Asked, Protocol, Question, questions};
use super::transport::{Courier, Gate, in_order};
use super::{Identity, Judge};
use crate::error::Result;
use crate::judgement::{Outcome, Row};
use crate::progress::Progress;
use crate::units::Digest;

/// The questions about some pairs, in the order of their rows: for each pair each repetition, in both orders.
#[derive(Debug)]
pub struct Plan<'a> {
    judge: &'a Judge,
    identity: Identity,
    cache: Option<&'a Cache>,
    template: Digest,
    questions: Vec<Question<'a>>,
    /// For each question, the number of its answer: questions that are the same have one.
    of_question: Vec<usize>,
    /// For each answer, the first question that it answers.
    first: Vec<usize>,
    answers: Vec<Option<Answer>>,
}

/// What asking would take.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Estimate {
    /// Rows.
    pub rows: usize,
    /// Rows whose answers are there.
    pub answered: usize,
    /// What the other calls may cost: as many tokens as the answers may have at most.
    pub missing: Spent,
    /// What the answers that are there cost.
    pub spent: Spent,
}

/// Rows and what they cost.
#[derive(Debug, Clone, PartialEq)]
pub struct Judged {
    /// One row a call.
    pub rows: Vec<Row>,
    /// What this run cost, calls that may have been charged without an answer included.
    pub spent: Spent,
    /// What the answers that were there had cost.
    pub before: Spent,
    /// How many calls at a time the judge bore in the end.
    pub concurrency: f64,
}

impl<'a> Plan<'a> {
    /// Makes the questions, and finds the answers that are there.
    ///
    /// # Errors
    /// Where a pair cannot be asked about, such as one whose images differ in size.
    pub fn new(
        judge: &'a Judge,
        protocol: &Protocol,
        asked: &'a [Asked],
        cache: Option<&'a Cache>,
    ) -> Result<Self> {
        let (identity, cache) = (judge.identity(), cache.filter(|_| judge.is_kept()));
        let digest = identity.digest();
        let mut all = Vec::with_capacity(asked.len() * 2 * protocol.repeats as usize);
        for asked in asked {
            all.extend(questions(asked, protocol, &digest, judge.form())?);
        }
        let (mut of_question, mut first) = (Vec::with_capacity(all.len()), Vec::new());
        let mut known: HashMap<&Digest, usize> = HashMap::with_capacity(all.len());
        for (index, question) in all.iter().enumerate() {
            // An oracle answers for each user and name of its own, whatever the images hold.
            let answer = match judge.is_kept() {
                true => *known.entry(&question.key).or_insert(first.len()),
                false => first.len(),
            };
            if answer == first.len() {
                first.push(index);
            }
            of_question.push(answer);
        }
        let answers = first.iter().map(|index| cache?.get(&all[*index].key)).collect();
        let template = protocol.template.digest().clone();
        Ok(Self { judge, identity, cache, template, questions: all, of_question, first, answers })
    }

    /// What asking would take.
    pub fn estimate(&self) -> Estimate {
        let missing = self.answers.iter().zip(&self.first).filter(|(answer, _)| answer.is_none());
        let missing = missing.map(|(_, index)| self.judge.estimate(&self.questions[*index]));
        let answered = self.of_question.iter().filter(|answer| self.answers[**answer].is_some()).count();
        Estimate {
            rows: self.questions.len(),
            answered,
            missing: missing.fold(Spent::default(), Spent::plus),
            spent: self.spent(),
        }
    }

    /// What the answers that are there cost.
    fn spent(&self) -> Spent {
        let price = self.judge.price();
        let answered = self.answers.iter().zip(&self.first).filter_map(|(answer, index)| {
            let answer = answer.as_ref()?;
            Some(Spent::answer(answer, &self.judge.estimate(&self.questions[*index]), &price))
        });
        answered.fold(Spent::default(), Spent::plus)
    }

    /// Asks what is not answered. The caps hold for all answers of the table, those that were there included.
    ///
    /// # Errors
    /// [`Error::Stopped`](crate::error::Error::Stopped), and what is wrong with a question, such as an image that cannot be read;
    /// the answers so far are kept.
    pub fn ask(mut self, caps: Caps, progress: &Progress) -> Result<Judged> {
        let before = self.spent();
        let (limits, price) = (self.judge.limits(), self.judge.price());
        let (gate, budget, stopped) = (Gate::new(&limits), Budget::new(caps, before), Mutex::new(None));
        let courier = Courier {
            limits: &limits,
            price: &price,
            gate: &gate,
            budget: &budget,
            progress,
            stopped: &stopped,
        };
        let missing: Vec<usize> =
            (0..self.answers.len()).filter(|index| self.answers[*index].is_none()).collect();
        progress.begin("judge", missing.len());
        let given: Vec<Mutex<Option<Answer>>> = missing.iter().map(|_| Mutex::new(None)).collect();
        in_order(limits.concurrency, missing.len(), |index| {
            let question = &self.questions[self.first[missing[index]]];
            let answer = self.answer(&courier, question)?;
            *given[index].lock().unwrap_or_else(PoisonError::into_inner) = Some(answer);
            progress.advance(1);
            Ok(())
        })?;
        for (index, answer) in missing.into_iter().zip(given) {
            self.answers[index] = answer.into_inner().unwrap_or_else(PoisonError::into_inner);
        }
        let used = budget.used();
        let spent = Spent {
            calls: used.calls - before.calls,
            tokens_in: used.tokens_in - before.tokens_in,
            tokens_out: used.tokens_out - before.tokens_out,
            cost: used.cost - before.cost,
        };
        let rows = self.questions.iter().zip(&self.of_question);
        let rows =
            rows.map(|(question, answer)| self.row(question, self.answers[*answer].as_ref())).collect();
        Ok(Judged { rows, spent, before, concurrency: gate.limit() })
    }

    /// The answer to a question: another process's, or the judge's, which is then kept.
    fn answer(&self, courier: &Courier, question: &Question) -> Result<Answer> {
        if let Some(cache) = self.cache {
            cache.refresh()?;
            if let Some(answer) = cache.get(&question.key) {
                return Ok(answer);
            }
        }
        let estimate = self.judge.estimate(question);
        let answer = courier.ask(&question.key, &estimate, || self.judge.attempt(question))?;
        match self.cache {
            Some(cache) if answer.outcome.is_final() => cache.put(&question.key, answer),
            _ => Ok(answer),
        }
    }

    fn row(&self, question: &Question, answer: Option<&Answer>) -> Row {
        let asked = question.asked;
        let endpoint = answer.and_then(|answer| answer.endpoint.as_deref());
        let version = [self.identity.version.as_str(), endpoint.unwrap_or_default()];
        let outcome = answer.map_or_else(
            || Outcome::TransportError { reason: "the question was not asked".into() },
            |answer| answer.outcome.clone(),
        );
        Row {
            user: asked.user.clone(),
            prompt: asked.prompt.clone(),
            left: asked.left.name().to_owned(),
            right: asked.right.name().to_owned(),
            order: question.order,
            repeat: question.repeat,
            shots: asked.shots.len() as u32,
            judge: format!("{} {}", self.identity.kind, self.identity.model),
            version: version.join(" ").trim().to_owned(),
            template: self.template.clone(),
            outcome,
            tokens_in: answer.and_then(|answer| answer.tokens_in),
            tokens_out: answer.and_then(|answer| answer.tokens_out),
        }
    }
}
