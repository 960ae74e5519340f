//! The stack machine that a pickle is a program for, without the part that calls functions.

use std::cell::RefCell;
use std::collections::HashMap;
use std::rc::Rc;

/// What is wrong with a pickle.
#[derive(Debug)]
pub enum Fault {
    /// It is no whole pickle.
    Broken(String),
    /// It holds what could run.
    Code(String),
}

/// A tensor as the pickle describes it; strides and offset count elements.
#[derive(Debug, Clone)]
pub struct Stored {
    /// torch's name of the storage's type, for example `FloatStorage`.
    pub kind: String,
    /// The archive's key of the storage.
    pub storage: String,
    pub shape: Vec<usize>,
    pub strides: Vec<usize>,
    pub offset: usize,
}

/// A value on the stack. Lists and dicts are shared, as in Python: what the memo holds is the same object.
#[derive(Debug, Clone)]
pub enum Value {
    Int(i64),
    Text(Rc<str>),
    Tuple(Rc<Vec<Value>>),
    List(Rc<RefCell<Vec<Value>>>),
    Dict(Rc<RefCell<Vec<(Value, Value)>>>),
    /// An allowed function or type, by its full name; it stays a name.
    Global(Rc<str>),
    /// A storage's type and key.
    Storage(Rc<(String, String)>),
    Tensor(Rc<Stored>),
    /// What no tensor depends on: numbers, flags, bytes, devices.
    Plain,
}

impl Value {
    /// The value under a name, of a dict that has it.
    pub fn get(&self, name: &str) -> Option<Self> {
        let Self::Dict(entries) = self else { return None };
        let is_it = |(key, _): &&(Self, Self)| matches!(key, Self::Text(text) if &**text == name);
        entries.borrow().iter().find(is_it).map(|(_, value)| value.clone())
    }

    fn sizes(&self) -> Option<Vec<usize>> {
        let Self::Tuple(sizes) = self else { return None };
        sizes.iter().map(|size| size.count()).collect()
    }

    fn count(&self) -> Option<usize> {
        match self {
            Self::Int(count) => usize::try_from(*count).ok(),
            _ => None,
        }
    }
}

/// What a state dict may name beside torch's storages and number types.
const ALLOWED: [&str; 17] = [
    "collections.OrderedDict",
    "collections.defaultdict",
    "builtins.dict",
    "builtins.set",
    "torch._utils._rebuild_tensor_v2",
    "torch._utils._rebuild_parameter",
    "torch._utils._rebuild_parameter_with_state",
    "torch._tensor._rebuild_from_type_v2",
    "torch.Tensor",
    "torch.nn.parameter.Parameter",
    "torch.Size",
    "torch.device",
    "numpy.dtype",
    "numpy.core.multiarray.scalar",
    "numpy._core.multiarray.scalar",
    "_codecs.encode",
    "torch.serialization._get_layout",
];

/// torch's number types, which checkpoints name below `torch.`.
const NUMBERS: [&str; 9] =
    ["float16", "bfloat16", "float32", "float64", "uint8", "int8", "int32", "int64", "bool"];

fn is_allowed(name: &str) -> bool {
    let below_torch = name.strip_prefix("torch.").filter(|rest| !rest.contains('.'));
    ALLOWED.contains(&name)
        || below_torch.is_some_and(|rest| {
            NUMBERS.contains(&rest)
                || rest.strip_suffix("Storage").is_some_and(|kind| kind.chars().all(char::is_alphanumeric))
        })
}

struct Machine<'a> {
    rest: &'a [u8],
    stack: Vec<Value>,
    /// Where the marks stand: the stack's heights.
    marks: Vec<usize>,
    memo: HashMap<u32, Value>,
}

/// Runs a pickle to its end and returns what it leaves.
pub fn run(pickle: &[u8]) -> std::result::Result<Value, Fault> {
    let mut machine = Machine { rest: pickle, stack: Vec::new(), marks: Vec::new(), memo: HashMap::new() };
    loop {
        if let Some(value) = machine.step()? {
            return Ok(value);
        }
    }
}

type Step<T = ()> = std::result::Result<T, Fault>;

fn broken(what: &str) -> Fault {
    Fault::Broken(what.to_owned())
}

impl<'a> Machine<'a> {
    fn bytes(&mut self, count: usize) -> Step<&'a [u8]> {
        let (taken, rest) = self.rest.split_at_checked(count).ok_or_else(|| broken("it ends too early"))?;
        self.rest = rest;
        Ok(taken)
    }

    /// An unsigned little-endian number of `width` bytes.
    fn number(&mut self, width: usize) -> Step<usize> {
        let bytes = self.bytes(width)?;
        let value = bytes.iter().rev().fold(0u64, |value, byte| value << 8 | u64::from(*byte));
        usize::try_from(value).map_err(|_| broken("it has a number that is too large"))
    }

    fn line(&mut self) -> Step<String> {
        let end =
            self.rest.iter().position(|byte| *byte == b'\n').ok_or_else(|| broken("it ends too early"))?;
        let line = self.bytes(end + 1)?;
        Ok(String::from_utf8_lossy(&line[..end]).trim_end_matches('\r').to_owned())
    }

    fn text(&mut self, width: usize) -> Step {
        let length = self.number(width)?;
        let text =
            std::str::from_utf8(self.bytes(length)?).map_err(|_| broken("it has a text that is none"))?;
        self.push(Value::Text(text.into()))
    }

    fn push(&mut self, value: Value) -> Step {
        self.stack.push(value);
        Ok(())
    }

    fn pop(&mut self) -> Step<Value> {
        let floor = self.marks.last().copied().unwrap_or(0);
        match self.stack.len() > floor {
            true => self.stack.pop().ok_or_else(|| broken("its stack is empty")),
            false => Err(broken("its stack is empty")),
        }
    }

    fn down_to_mark(&mut self) -> Step<Vec<Value>> {
        let height = self.marks.pop().ok_or_else(|| broken("it lacks a mark"))?;
        Ok(self.stack.split_off(height.min(self.stack.len())))
    }

    fn tuple(&mut self, count: usize) -> Step {
        let mut values = (0..count).map(|_| self.pop()).collect::<Step<Vec<Value>>>()?;
        values.reverse();
        self.push(Value::Tuple(values.into()))
    }

    fn list(&mut self, values: Vec<Value>) -> Step {
        self.push(Value::List(Rc::new(RefCell::new(values))))
    }

    fn dict(&mut self, values: Vec<Value>) -> Step {
        self.push(Value::Dict(Rc::default()))?;
        self.set(values)
    }

    /// Keys and values in turn, into the dict on top.
    fn set(&mut self, values: Vec<Value>) -> Step {
        match self.stack.last() {
            Some(Value::Dict(entries)) => {
                let mut values = values.into_iter();
                while let (Some(key), Some(value)) = (values.next(), values.next()) {
                    entries.borrow_mut().push((key, value));
                }
                Ok(())
            }
            // An attribute's dict of something plain.
            Some(Value::Plain) => Ok(()),
            _ => Err(broken("it sets an item of what is no dict")),
        }
    }

    fn append(&mut self, mut values: Vec<Value>) -> Step {
        match self.stack.last() {
            Some(Value::List(list)) => {
                list.borrow_mut().append(&mut values);
                Ok(())
            }
            Some(Value::Plain) => Ok(()),
            _ => Err(broken("it appends to what is no list")),
        }
    }

    fn remember(&mut self, key: usize) -> Step {
        let value = self.stack.last().ok_or_else(|| broken("its stack is empty"))?.clone();
        self.memo.insert(key as u32, value);
        Ok(())
    }

    fn recall(&mut self, width: usize) -> Step {
        let key = self.number(width)? as u32;
        let value = self.memo.get(&key).cloned().ok_or_else(|| broken("it recalls what it never stored"))?;
        self.push(value)
    }

    fn global(&mut self, module: &str, name: &str) -> Step {
        let name = format!("{}.{name}", if module == "__builtin__" { "builtins" } else { module });
        match is_allowed(&name) {
            true => self.push(Value::Global(name.into())),
            false => Err(Fault::Code(format!("names `{name}`, which is no part of a state dict"))),
        }
    }

    /// Where Python would call: what the few known functions give, without calling any.
    fn call(&mut self) -> Step {
        let (arguments, callee) = (self.pop()?, self.pop()?);
        let value = called(&callee, &arguments)?;
        self.push(value)
    }

    /// A storage, from `('storage', torch.FloatStorage, '0', 'cpu', 12)`.
    fn storage(&mut self) -> Step {
        let value = self.pop()?;
        if let Value::Tuple(parts) = &value
            && let [Value::Text(what), Value::Global(kind), Value::Text(key), ..] = &parts[..]
            && &**what == "storage"
        {
            let kind = kind.rsplit('.').next().unwrap_or_default().to_owned();
            return self.push(Value::Storage(Rc::new((kind, key.to_string()))));
        }
        Err(broken("it refers to what is no storage"))
    }

    /// One instruction; the last one gives the value.
    fn step(&mut self) -> Step<Option<Value>> {
        let op = self.bytes(1)?[0];
        match op {
            b'.' => return self.pop().map(Some),
            0x80 => drop(self.bytes(1)?), // PROTO
            0x95 => drop(self.bytes(8)?), // FRAME
            b'(' => self.marks.push(self.stack.len()),
            b'0' => drop(self.pop()?),
            b'1' => drop(self.down_to_mark()?),
            b'N' | 0x88 | 0x89 => self.push(Value::Plain)?, // NONE, NEWTRUE, NEWFALSE
            b'K' => {
                let value = self.number(1)?;
                self.push(Value::Int(value as i64))?;
            }
            b'M' => {
                let value = self.number(2)?;
                self.push(Value::Int(value as i64))?;
            }
            b'J' => {
                let value = self.number(4)?;
                self.push(Value::Int(i64::from(value as u32 as i32)))?;
            }
            0x8a => {
                // LONG1: two's complement of as many bytes as it says.
                let length = self.number(1)?;
                let bytes = self.bytes(length)?;
                let sign = if bytes.last().is_some_and(|byte| byte & 0x80 != 0) { -1 } else { 0 };
                let value = bytes.iter().rev().fold(sign, |value: i64, byte| value << 8 | i64::from(*byte));
                self.push(if length <= 8 { Value::Int(value) } else { Value::Plain })?;
            }
            b'G' => {
                self.bytes(8)?;
                self.push(Value::Plain)?;
            }
            b'X' => self.text(4)?,
            0x8c => self.text(1)?,
            0x8d => self.text(8)?,
            b'C' | b'U' | b'B' | b'T' | 0x8e => {
                // Bytes, which only numbers of numpy are made of.
                let width = match op {
                    b'C' | b'U' => 1,
                    0x8e => 8,
                    _ => 4,
                };
                let length = self.number(width)?;
                self.bytes(length)?;
                self.push(Value::Plain)?;
            }
            b')' => self.tuple(0)?,
            0x85..=0x87 => self.tuple(usize::from(op - 0x84))?,
            b't' => {
                let values = self.down_to_mark()?;
                self.push(Value::Tuple(values.into()))?;
            }
            b']' => self.list(Vec::new())?,
            b'l' => {
                let values = self.down_to_mark()?;
                self.list(values)?;
            }
            b'a' => {
                let value = self.pop()?;
                self.append(vec![value])?;
            }
            b'e' => {
                let values = self.down_to_mark()?;
                self.append(values)?;
            }
            b'}' => self.dict(Vec::new())?,
            b'd' => {
                let values = self.down_to_mark()?;
                self.dict(values)?;
            }
            b's' => {
                let (value, key) = (self.pop()?, self.pop()?);
                self.set(vec![key, value])?;
            }
            b'u' => {
                let values = self.down_to_mark()?;
                self.set(values)?;
            }
            b'c' => {
                let (module, name) = (self.line()?, self.line()?);
                self.global(&module, &name)?;
            }
            0x93 => match (self.pop()?, self.pop()?) {
                // STACK_GLOBAL
                (Value::Text(name), Value::Text(module)) => self.global(&module, &name)?,
                _ => return Err(broken("it names what is no text")),
            },
            b'R' | 0x81 => self.call()?, // REDUCE, NEWOBJ
            b'b' => drop(self.pop()?),   // BUILD: attributes, which no tensor depends on.
            b'Q' => self.storage()?,
            b'h' => self.recall(1)?,
            b'j' => self.recall(4)?,
            b'q' => {
                let key = self.number(1)?;
                self.remember(key)?;
            }
            b'r' => {
                let key = self.number(4)?;
                self.remember(key)?;
            }
            0x94 => self.remember(self.memo.len())?,
            b'i' | b'o' | 0x92 | 0x82..=0x84 => {
                return Err(Fault::Code(format!(
                    "has an instruction (0x{op:02x}) that makes objects by calling"
                )));
            }
            other => return Err(Fault::Broken(format!("it has an unknown instruction 0x{other:02x}"))),
        }
        Ok(None)
    }
}

/// What an allowed function would give.
fn called(callee: &Value, arguments: &Value) -> Step<Value> {
    let (Value::Global(name), Value::Tuple(arguments)) = (callee, arguments) else {
        return Err(Fault::Code("calls what is no name".into()));
    };
    Ok(match &**name {
        "collections.OrderedDict" | "collections.defaultdict" | "builtins.dict" => Value::Dict(Rc::default()),
        "torch._utils._rebuild_tensor_v2" => {
            tensor(arguments).ok_or_else(|| broken("it has a tensor that is none"))?
        }
        "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" => {
            arguments.first().cloned().unwrap_or(Value::Plain)
        }
        "torch._tensor._rebuild_from_type_v2" => match &arguments[..] {
            [inner @ Value::Global(_), _, values, ..] => called(inner, values)?,
            _ => return Err(broken("it has a tensor that is none")),
        },
        _ => Value::Plain,
    })
}

/// A tensor from (storage, offset, shape, strides, …).
fn tensor(arguments: &[Value]) -> Option<Value> {
    let [Value::Storage(storage), offset, shape, strides, ..] = arguments else { return None };
    let (shape, strides) = (shape.sizes()?, strides.sizes()?);
    let (kind, key) = (storage.0.clone(), storage.1.clone());
    (shape.len() == strides.len()).then_some(())?;
    Some(Value::Tensor(Rc::new(Stored { kind, storage: key, shape, strides, offset: offset.count()? })))
}
