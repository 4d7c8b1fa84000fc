//! The types of arrays in which an event's values are, looked at once for an array instead of for each value.

use arrow::{
    array::{ArrayRef, AsArray, BooleanArray, StringArray},
    buffer::OffsetBuffer,
    datatypes::{DataType, Int32Type, Int64Type, TimeUnit, TimestampMicrosecondType},
};

pub(crate) enum Values<'a> {
    Int(&'a [i64]),
    Bool(&'a BooleanArray),
    Text(&'a StringArray),
    /// Numbers of texts, and those.
    Keyed(&'a [i32], &'a StringArray),
    List(&'a OffsetBuffer<i32>, &'a StringArray),
}

/// `None` for types that neither a builder makes nor a file has.
pub(crate) fn values(array: &ArrayRef) -> Option<Values<'_>> {
    Some(match array.data_type() {
        DataType::Int64 => Values::Int(array.as_primitive::<Int64Type>().values()),
        DataType::Timestamp(TimeUnit::Microsecond, _) => {
            Values::Int(array.as_primitive::<TimestampMicrosecondType>().values())
        }
        DataType::Boolean => Values::Bool(array.as_boolean()),
        DataType::Utf8 => Values::Text(array.as_string()),
        DataType::Dictionary(_, _) => {
            let keyed = array.as_dictionary_opt::<Int32Type>()?;
            Values::Keyed(keyed.keys().values(), keyed.values().as_string_opt()?)
        }
        DataType::List(_) => {
            let lists = array.as_list::<i32>();
            Values::List(lists.offsets(), lists.values().as_string_opt()?)
        }
        _ => return None,
    })
}
