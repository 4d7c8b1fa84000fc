//! What does the event of a DNS message tell? The message's parts as the public contract has them:
//! text, in the message's order.
//!
//! Invariants: what is left out is counted in `answers_omitted`, never dropped silently; the whole
//! is bounded by [`ANSWERS_BYTES`] and one name. Names are in the presentation form of
//! [`super::name::Name`]; the strings of a TXT record are joined and escaped by
//! [`audit_proto::text`].

use audit_proto::text::escape;

use super::message::{Data, Message, Text};

/// Text of all answers of one event; TXT records may be of 64 KiB each.
pub const ANSWERS_BYTES: usize = 8 << 10;

/// For the fields of `dns` in an event.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Summary {
    /// Joins a response with its query.
    pub id: i64,
    pub response: bool,
    /// Empty where the message has no question.
    pub query_name: String,
    pub query_type: String,
    /// Empty in a query.
    pub response_code: String,
    /// Addresses (hints of HTTPS records too), targets of CNAME, PTR, MX and so on, texts.
    pub answers: Vec<String>,
    /// Answers in the message that are not in `answers`: of types that have none of these, beyond
    /// the bounds, or behind the end of what was captured.
    pub answers_omitted: i64,
    /// The server had more to say than fits in a datagram.
    pub truncated: bool,
}

impl Summary {
    pub fn of(message: &Message<'_>) -> Self {
        let question = message.question.as_ref();
        let mut summary = Self {
            id: message.id.into(),
            response: message.response,
            query_name: question.map_or_else(String::new, |q| q.name.to_string()),
            query_type: question.map_or_else(String::new, |q| q.record_type.to_string()),
            response_code: if message.response {
                message.response_code.to_string()
            } else {
                String::new()
            },
            truncated: message.truncated,
            ..Self::default()
        };
        let unread = message
            .answers_told
            .saturating_sub(message.readable_answers());
        summary.answers_omitted = unread.into();
        let mut room = ANSWERS_BYTES;
        for answer in message.answers() {
            let told = match answer.data {
                Data::Address(address) => {
                    push(&mut summary.answers, &mut room, address.to_string())
                }
                Data::Target(name) => push(&mut summary.answers, &mut room, name.to_string()),
                Data::Text(text) => text_of(text, room)
                    .is_some_and(|text| push(&mut summary.answers, &mut room, text)),
                Data::Service(service) => {
                    let mut told =
                        push(&mut summary.answers, &mut room, service.target.to_string());
                    for hint in service.hints() {
                        told = told && push(&mut summary.answers, &mut room, hint.to_string());
                    }
                    told
                }
                Data::Other => false,
            };
            summary.answers_omitted += i64::from(!told);
        }
        summary
    }
}

/// False where there is no room.
fn push(answers: &mut Vec<String>, room: &mut usize, text: String) -> bool {
    // An answer costs its place too, else empty ones would be free.
    let bytes = text.len() + size_of::<String>();
    let fits = bytes <= *room;
    if fits {
        *room -= bytes;
        answers.push(text);
    }
    fits
}

/// None where it cannot have room.
fn text_of(text: Text<'_>, room: usize) -> Option<String> {
    let bytes: usize = text.strings().map(<[u8]>::len).sum();
    if bytes > room {
        return None;
    }
    let joined: Vec<u8> = text.strings().flatten().copied().collect();
    Some(escape(&joined).into_owned())
}
