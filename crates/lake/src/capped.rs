//! Functions whose result is as long as a number says.
//!
//! `repeat('x', 2000000000)` makes two gigabytes out of nothing, in one allocation that no memory
//! pool hears of. So these functions look at their number first. Everything else that grows goes
//! through operators, which the memory pool bounds.

use std::hash::{Hash, Hasher};
use std::sync::Arc;

use arrow::array::{Array as _, AsArray as _};
use arrow::compute::cast;
use arrow::datatypes::{DataType, FieldRef, Int64Type};
use datafusion::common::{Result, exec_err};
use datafusion::logical_expr::{
    ColumnarValue, Documentation, ReturnFieldArgs, ScalarFunctionArgs, ScalarUDF, ScalarUDFImpl,
    Signature,
};
use datafusion::prelude::SessionContext;

/// Characters or elements one such value may have: more than any honest padding, less than hurts.
const MOST: i64 = 100_000;

/// How to tell the length from the arguments.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Length {
    /// The argument at this place.
    Argument(usize),
    /// From the first argument to the second, by the third.
    Range,
}

const FUNCTIONS: [(&str, Length); 7] = [
    ("repeat", Length::Argument(1)),
    ("lpad", Length::Argument(1)),
    ("rpad", Length::Argument(1)),
    ("array_repeat", Length::Argument(1)),
    ("array_resize", Length::Argument(1)),
    ("range", Length::Range),
    ("generate_series", Length::Range),
];

/// Puts the guards before the functions of `context`.
pub(crate) fn cap(context: &SessionContext) {
    for (name, length) in FUNCTIONS {
        let found = context
            .state_ref()
            .read()
            .scalar_functions()
            .get(name)
            .cloned();
        if let Some(inner) = found {
            context.register_udf(ScalarUDF::new_from_impl(Capped { inner, length }));
        }
    }
}

#[derive(Debug)]
struct Capped {
    inner: Arc<ScalarUDF>,
    length: Length,
}

impl PartialEq for Capped {
    fn eq(&self, other: &Capped) -> bool {
        self.inner == other.inner && self.length == other.length
    }
}

impl Eq for Capped {}

impl Hash for Capped {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

impl Capped {
    fn check(&self, arguments: &[ColumnarValue]) -> Result<()> {
        let most = match self.length {
            Length::Argument(index) => match arguments.get(index) {
                Some(argument) => numbers(argument)?.into_iter().flatten().max(),
                None => None,
            },
            Length::Range => longest_range(arguments)?,
        };
        match most {
            Some(length) if length > MOST => exec_err!(
                "{} would make {length} characters or elements, at most {MOST} are made at once",
                self.inner.name()
            ),
            _ => Ok(()),
        }
    }
}

/// The argument's values, `None` where it is null or no number (a range of dates has few elements
/// per byte asked for, and its own limit in the engine).
fn numbers(argument: &ColumnarValue) -> Result<Vec<Option<i64>>> {
    let array = argument.to_array(1)?;
    if !array.data_type().is_integer() {
        return Ok(vec![None; array.len()]);
    }
    let array = cast(&array, &DataType::Int64)?;
    Ok(array.as_primitive::<Int64Type>().iter().collect())
}

fn longest_range(arguments: &[ColumnarValue]) -> Result<Option<i64>> {
    let lists = arguments.iter().map(numbers).collect::<Result<Vec<_>>>()?;
    let (start, stop, step) = match lists.as_slice() {
        [stop] => (&vec![Some(0)], stop, &vec![Some(1)]),
        [start, stop] => (start, stop, &vec![Some(1)]),
        [start, stop, step] => (start, stop, step),
        _ => return Ok(None),
    };
    // A single value stands for all rows.
    let at =
        |list: &[Option<i64>], row: usize| list.get(row.min(list.len() - 1)).copied().flatten();
    let rows = lists.iter().map(Vec::len).max().unwrap_or_default();
    if lists.iter().any(Vec::is_empty) {
        return Ok(None);
    }
    Ok((0..rows)
        .filter_map(|row| {
            let (start, stop) = (at(start, row)?, at(stop, row)?);
            let step = at(step, row)?.checked_abs().filter(|&step| step > 0)?;
            Some(stop.saturating_sub(start).saturating_abs() / step)
        })
        .max())
}

impl ScalarUDFImpl for Capped {
    fn name(&self) -> &str {
        self.inner.name()
    }

    fn aliases(&self) -> &[String] {
        self.inner.aliases()
    }

    fn signature(&self) -> &Signature {
        self.inner.signature()
    }

    fn return_type(&self, arguments: &[DataType]) -> Result<DataType> {
        self.inner.return_type(arguments)
    }

    fn return_field_from_args(&self, arguments: ReturnFieldArgs<'_>) -> Result<FieldRef> {
        self.inner.return_field_from_args(arguments)
    }

    fn coerce_types(&self, arguments: &[DataType]) -> Result<Vec<DataType>> {
        self.inner.coerce_types(arguments)
    }

    fn invoke_with_args(&self, arguments: ScalarFunctionArgs) -> Result<ColumnarValue> {
        self.check(&arguments.args)?;
        self.inner.invoke_with_args(arguments)
    }

    fn documentation(&self) -> Option<&Documentation> {
        self.inner.documentation()
    }
}
