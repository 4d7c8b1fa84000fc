//! What does a rule's value, with its modifiers, ask of a field?
//!
//! [`tests`] turns one detection item's modifiers and one value into tests of which one must
//! hold. Invariant: an uncased literal is folded, so it is compared with folded text.

use regex::{Regex, RegexBuilder};
use regex_syntax::hir::literal::Extractor;
use rsigma_parser::{Modifier, SigmaString, SigmaValue, SpecialChar, StringPart};

use crate::{
    encode,
    field::Field,
    glob::{self, Token},
    network::Network,
    values::{Values, folded},
};

/// `windash` multiplies a value by five for each dash that begins an option.
const MAX_VARIANTS: usize = 625;
/// A regular expression that can begin in more ways than this is tried without looking for them.
const MAX_BEGINNINGS: usize = 32;

/// Where a literal must be in a text.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Anchor {
    Whole,
    Start,
    End,
    Anywhere,
}

impl Anchor {
    pub fn accepts(self, text: &str, start: usize, end: usize) -> bool {
        match self {
            Anchor::Whole => start == 0 && end == text.len(),
            Anchor::Start => start == 0,
            Anchor::End => end == text.len(),
            Anchor::Anywhere => true,
        }
    }

    fn finds(self, literal: &str, text: &str) -> bool {
        match self {
            Anchor::Whole => text == literal,
            Anchor::Start => text.starts_with(literal),
            Anchor::End => text.ends_with(literal),
            Anchor::Anywhere => text.contains(literal),
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Order {
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

/// A regular expression with the flags the rule gave it.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct RegexSource {
    pattern: String,
    ignore_case: bool,
    multi_line: bool,
    dot_all: bool,
}

impl RegexSource {
    pub fn compile(&self) -> Result<Regex, regex::Error> {
        RegexBuilder::new(&self.pattern)
            .case_insensitive(self.ignore_case)
            .multi_line(self.multi_line)
            .dot_matches_new_line(self.dot_all)
            .build()
    }

    /// Texts of which each match begins with one; `None` if they are too many to be useful.
    fn beginnings(&self) -> Option<Vec<String>> {
        let mut parser = regex_syntax::ParserBuilder::new()
            .case_insensitive(self.ignore_case)
            .multi_line(self.multi_line)
            .dot_matches_new_line(self.dot_all)
            .build();
        let found = Extractor::new().extract(&parser.parse(&self.pattern).ok()?);
        let literals = found
            .literals()
            .filter(|l| !l.is_empty() && l.len() <= MAX_BEGINNINGS)?;
        literals
            .iter()
            .map(|l| {
                std::str::from_utf8(l.as_bytes())
                    .ok()
                    .filter(|t| !t.is_empty())
                    .map(folded)
            })
            .collect()
    }
}

/// A test of one field.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Test {
    /// The index finds these; all others are tested one by one.
    Literal {
        anchor: Anchor,
        text: String,
    },
    CasedLiteral {
        anchor: Anchor,
        text: String,
    },
    Glob {
        tokens: Vec<Token>,
        cased: bool,
    },
    Regex(RegexSource),
    Cidr(Network),
    /// The number's text; compared as integer where both sides are.
    Compare(Order, String),
    Present,
    Absent,
    /// The other field's value, any of this field's with any of that one's.
    SameAs {
        other: Field,
        anchor: Anchor,
        cased: bool,
    },
}

/// Why a value could not be understood.
#[derive(Debug, PartialEq, Eq)]
pub enum PatternError {
    Unsupported(String),
    Invalid { problem: String, fix: String },
}

fn invalid<T>(problem: String, fix: &str) -> Result<T, PatternError> {
    Err(PatternError::Invalid {
        problem,
        fix: fix.to_owned(),
    })
}

/// The tests that `value` means under `modifiers`: one of them must hold.
pub fn tests(modifiers: &[Modifier], value: &SigmaValue) -> Result<Vec<Test>, PatternError> {
    let has = |m| modifiers.contains(&m);
    if let Some(unsupported) = modifiers.iter().find(|m| is_unsupported(**m)) {
        return Err(PatternError::Unsupported(
            format!("modifier {unsupported:?}").to_lowercase(),
        ));
    }
    if has(Modifier::Exists) {
        return exists(value).map(|test| vec![test]);
    }
    if let Some(order) = modifiers.iter().find_map(|m| order(*m)) {
        return compare(order, value).map(|test| vec![test]);
    }
    if has(Modifier::Re) {
        return regex(modifiers, value).map(|test| vec![test]);
    }
    let text = match value {
        SigmaValue::Null => return Ok(vec![Test::Absent]),
        SigmaValue::String(text) => text.clone(),
        other => SigmaString::from_raw(&other.to_string()),
    };
    if has(Modifier::Cidr) {
        return match Network::parse(&text.original) {
            Some(network) => Ok(vec![Test::Cidr(network)]),
            None => invalid(
                format!("{:?} is not a network", text.original),
                "write ADDRESS/BITS, for example 10.0.0.0/8",
            ),
        };
    }
    let cased = has(Modifier::Cased);
    if has(Modifier::FieldRef) {
        let Some(other) = Field::named(&text.original) else {
            return Err(PatternError::Unsupported(format!(
                "fieldref to {}",
                text.original
            )));
        };
        return Ok(vec![Test::SameAs {
            other,
            anchor: anchor(modifiers),
            cased,
        }]);
    }
    let variants = variants(modifiers, &text)?;
    Ok(variants
        .into_iter()
        .map(|v| text_test(v, modifiers, cased))
        .collect())
}

fn is_unsupported(modifier: Modifier) -> bool {
    use Modifier::{Day, Expand, Hour, Minute, Month, Week, Year};
    matches!(modifier, Expand | Minute | Hour | Day | Week | Month | Year)
}

fn order(modifier: Modifier) -> Option<Order> {
    Some(match modifier {
        Modifier::Lt => Order::Less,
        Modifier::Lte => Order::LessOrEqual,
        Modifier::Gt => Order::Greater,
        Modifier::Gte => Order::GreaterOrEqual,
        _ => return None,
    })
}

fn anchor(modifiers: &[Modifier]) -> Anchor {
    let has = |m| modifiers.contains(&m);
    match (
        has(Modifier::Contains),
        has(Modifier::StartsWith),
        has(Modifier::EndsWith),
    ) {
        (true, _, _) | (false, true, true) => Anchor::Anywhere,
        (false, true, false) => Anchor::Start,
        (false, false, true) => Anchor::End,
        (false, false, false) => Anchor::Whole,
    }
}

fn exists(value: &SigmaValue) -> Result<Test, PatternError> {
    match value.to_string().to_lowercase().as_str() {
        "true" | "yes" => Ok(Test::Present),
        "false" | "no" => Ok(Test::Absent),
        other => invalid(format!("exists cannot be {other:?}"), "write true or false"),
    }
}

fn compare(order: Order, value: &SigmaValue) -> Result<Test, PatternError> {
    let text = value.to_string();
    match text.parse::<f64>() {
        Ok(_) => Ok(Test::Compare(order, text)),
        Err(_) => invalid(
            format!("{text:?} is not a number"),
            "lt, lte, gt and gte need a number",
        ),
    }
}

fn regex(modifiers: &[Modifier], value: &SigmaValue) -> Result<Test, PatternError> {
    let has = |m| modifiers.contains(&m);
    let pattern = match value {
        SigmaValue::String(text) => text.original.clone(),
        other => other.to_string(),
    };
    let source = RegexSource {
        pattern,
        ignore_case: has(Modifier::IgnoreCase),
        multi_line: has(Modifier::Multiline),
        dot_all: has(Modifier::DotAll),
    };
    match source.compile() {
        Ok(_) => Ok(Test::Regex(source)),
        Err(error) => {
            let cause = error.to_string();
            let cause = cause.lines().last().unwrap_or_default().trim();
            invalid(
                format!(
                    "regular expression {:?} cannot be used: {cause}",
                    source.pattern
                ),
                "repair it (look-around and back-references do not exist here)",
            )
        }
    }
}

/// A value on its way through the transforming modifiers.
type Parts = Vec<StringPart>;

fn variants(modifiers: &[Modifier], text: &SigmaString) -> Result<Vec<Parts>, PatternError> {
    let mut variants = vec![text.parts.clone()];
    // UTF-16 need not be UTF-8: bytes wait here for the base64 that usually follows.
    let mut bytes: Option<Vec<u8>> = None;
    for modifier in modifiers {
        match modifier {
            Modifier::WindAsh => variants = windash(&variants)?,
            Modifier::Wide => bytes = Some(encode::utf16(&plain(&variants)?, false)),
            Modifier::Utf16be => bytes = Some(encode::utf16(&plain(&variants)?, true)),
            Modifier::Utf16 => {
                let mut marked = vec![0xff, 0xfe];
                marked.extend(encode::utf16(&plain(&variants)?, false));
                bytes = Some(marked);
            }
            Modifier::Base64 => {
                let input = take_bytes(&mut bytes, &variants)?;
                variants = vec![literal(encode::base64(&input))?];
            }
            Modifier::Base64Offset => {
                let input = take_bytes(&mut bytes, &variants)?;
                variants = encode::base64_offsets(&input)
                    .into_iter()
                    .map(literal)
                    .collect::<Result<_, _>>()?;
            }
            _ => {}
        }
    }
    match bytes {
        Some(bytes) => Ok(vec![literal(bytes)?]),
        None => Ok(variants),
    }
}

fn take_bytes(bytes: &mut Option<Vec<u8>>, variants: &[Parts]) -> Result<Vec<u8>, PatternError> {
    match bytes.take() {
        Some(bytes) => Ok(bytes),
        None => plain(variants).map(String::into_bytes),
    }
}

fn literal(bytes: Vec<u8>) -> Result<Parts, PatternError> {
    match String::from_utf8(bytes) {
        Ok(text) => Ok(vec![StringPart::Plain(text)]),
        Err(_) => Err(PatternError::Unsupported(
            "UTF-16 without base64 after it".to_owned(),
        )),
    }
}

fn plain(variants: &[Parts]) -> Result<String, PatternError> {
    let mut out = String::new();
    let [parts] = variants else {
        return Err(PatternError::Unsupported(
            "encoding of several variants".to_owned(),
        ));
    };
    for part in parts {
        match part {
            StringPart::Plain(text) => out.push_str(text),
            StringPart::Special(_) => {
                return invalid(
                    "a wildcard cannot be encoded".to_owned(),
                    "escape it as \\* or \\?, or use contains",
                );
            }
        }
    }
    Ok(out)
}

fn windash(variants: &[Parts]) -> Result<Vec<Parts>, PatternError> {
    let mut done = Vec::new();
    for parts in variants {
        let mut forms: Vec<Parts> = vec![Vec::new()];
        for part in parts {
            let choices = match part {
                StringPart::Plain(text) => dash_forms(text)?,
                special @ StringPart::Special(_) => vec![special.clone()],
            };
            forms = forms
                .iter()
                .flat_map(|form| {
                    choices.iter().map(move |choice| {
                        let mut longer = form.clone();
                        longer.push(choice.clone());
                        longer
                    })
                })
                .collect();
            if forms.len() > MAX_VARIANTS {
                return too_many_dashes();
            }
        }
        done.extend(forms);
    }
    Ok(done)
}

fn too_many_dashes<T>() -> Result<T, PatternError> {
    invalid(
        "too many dashes for windash".to_owned(),
        "split the value (at most four options)",
    )
}

fn dash_forms(text: &str) -> Result<Vec<StringPart>, PatternError> {
    let mut forms = vec![String::new()];
    let mut from = 0;
    for at in encode::option_dashes(text) {
        if forms.len() * encode::DASHES.len() > MAX_VARIANTS {
            return too_many_dashes();
        }
        forms = forms
            .iter()
            .flat_map(|form| encode::DASHES.map(|dash| format!("{form}{}{dash}", &text[from..at])))
            .collect();
        from = at + 1;
    }
    Ok(forms
        .into_iter()
        .map(|form| StringPart::Plain(form + &text[from..]))
        .collect())
}

fn text_test(mut parts: Parts, modifiers: &[Modifier], cased: bool) -> Test {
    let many = || StringPart::Special(SpecialChar::WildcardMulti);
    let anchor = anchor(modifiers);
    if matches!(anchor, Anchor::Anywhere | Anchor::End) {
        parts.insert(0, many());
    }
    if matches!(anchor, Anchor::Anywhere | Anchor::Start) {
        parts.push(many());
    }
    parts.dedup_by(|a, b| *a == many() && *b == many());
    let star = |part: Option<&StringPart>| part == Some(&many());
    let (open_start, open_end) = (star(parts.first()), star(parts.last()));
    let inner = &parts[usize::from(open_start)..];
    let inner = &inner[..inner.len().saturating_sub(usize::from(open_end))];
    match inner {
        // `''` is a field without a value, `'*'` one with any.
        [] if !open_start => Test::Absent,
        [] => Test::Present,
        [StringPart::Plain(text)] => {
            let anchor = match (open_start, open_end) {
                (true, true) => Anchor::Anywhere,
                (true, false) => Anchor::End,
                (false, true) => Anchor::Start,
                (false, false) => Anchor::Whole,
            };
            match cased {
                true => Test::CasedLiteral {
                    anchor,
                    text: text.clone(),
                },
                false => Test::Literal {
                    anchor,
                    text: folded(text),
                },
            }
        }
        _ => Test::Glob {
            tokens: tokens(&parts, cased),
            cased,
        },
    }
}

fn tokens(parts: &[StringPart], cased: bool) -> Vec<Token> {
    let mut tokens = Vec::new();
    for part in parts {
        match part {
            StringPart::Plain(text) if cased => tokens.extend(text.chars().map(Token::Char)),
            StringPart::Plain(text) => tokens.extend(folded(text).chars().map(Token::Char)),
            StringPart::Special(SpecialChar::WildcardMulti) => tokens.push(Token::Many),
            StringPart::Special(SpecialChar::WildcardSingle) => tokens.push(Token::One),
        }
    }
    tokens
}

impl Test {
    /// Folded literals of which every matching value contains one, for the index.
    pub fn implied_literals(&self) -> Option<Vec<(Anchor, String)>> {
        match self {
            Test::Literal { anchor, text } => Some(vec![(*anchor, text.clone())]),
            Test::CasedLiteral { anchor, text } => Some(vec![(*anchor, folded(text))]),
            Test::Glob { tokens, .. } => {
                let pieces = tokens.split(|token| !matches!(token, Token::Char(_)));
                let longest = pieces
                    .max_by_key(|piece| piece.len())
                    .filter(|p| !p.is_empty())?;
                let text: String = longest
                    .iter()
                    .filter_map(|t| match t {
                        Token::Char(c) => Some(*c),
                        _ => None,
                    })
                    .collect();
                Some(vec![(Anchor::Anywhere, folded(&text))])
            }
            Test::Regex(source) => {
                let beginnings = source.beginnings()?.into_iter();
                Some(beginnings.map(|text| (Anchor::Anywhere, text)).collect())
            }
            _ => None,
        }
    }

    /// The answer for one field's values, asking the values of another field from `other`.
    pub fn holds(&self, values: &Values, compiled: Option<&Regex>, other: Option<&Values>) -> bool {
        let text_holds = |cased: bool, test: &dyn Fn(&str) -> bool| match cased {
            true => values.raw().any(test),
            false => values.folded().any(test),
        };
        match self {
            Test::Literal { anchor, text } => text_holds(false, &|v| anchor.finds(text, v)),
            Test::CasedLiteral { anchor, text } => text_holds(true, &|v| anchor.finds(text, v)),
            Test::Glob { tokens, cased } => text_holds(*cased, &|v| glob::matches(tokens, v)),
            Test::Regex(_) => compiled.is_some_and(|re| values.raw().any(|v| re.is_match(v))),
            Test::Cidr(network) => values.raw().any(|v| network.contains(v)),
            Test::Compare(order, number) => values.raw().any(|v| order.holds(v, number)),
            Test::Present => !values.is_empty(),
            Test::Absent => values.is_empty(),
            Test::SameAs { anchor, cased, .. } => other.is_some_and(|other| match cased {
                true => other
                    .raw()
                    .any(|o| values.raw().any(|v| anchor.finds(o, v))),
                false => other
                    .folded()
                    .any(|o| values.folded().any(|v| anchor.finds(o, v))),
            }),
        }
    }
}

impl Order {
    fn holds(self, value: &str, number: &str) -> bool {
        let ordering = match (value.parse::<i64>(), number.parse::<i64>()) {
            (Ok(value), Ok(number)) => Some(value.cmp(&number)),
            _ => match (value.parse::<f64>(), number.parse::<f64>()) {
                (Ok(value), Ok(number)) => value.partial_cmp(&number),
                _ => None,
            },
        };
        ordering.is_some_and(|ordering| match self {
            Order::Less => ordering.is_lt(),
            Order::LessOrEqual => ordering.is_le(),
            Order::Greater => ordering.is_gt(),
            Order::GreaterOrEqual => ordering.is_ge(),
        })
    }
}
