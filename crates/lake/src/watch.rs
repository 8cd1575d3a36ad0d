//! Makes a running query notice that its time is over.
//!
//! DataFusion's operators look up only when they have rows to hand on or need more. A join whose
//! condition holds nowhere does neither: it compares billions of pairs in one go, and neither the
//! deadline nor a client that has gone would stop it. So every plan is gone through before it runs:
//! operators that multiply rows are [watched](WatchedExec) where they hand rows on, and join
//! conditions [look at the clock](WatchedExpr) each time they are evaluated.

use std::any::Any;
use std::fmt;
use std::hash::{Hash, Hasher};
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::task::{Context, Poll};
use std::time::Instant;

use arrow::array::RecordBatch;
use arrow::datatypes::{DataType, FieldRef, Schema, SchemaRef};
use datafusion::common::tree_node::{Transformed, TreeNode as _, TreeNodeRecursion};
use datafusion::common::{Result, exec_err, internal_err};
use datafusion::execution::{RecordBatchStream, SendableRecordBatchStream, TaskContext};
use datafusion::logical_expr::ColumnarValue;
use datafusion::physical_expr::PhysicalExpr;
use datafusion::physical_plan::joins::utils::JoinFilter;
use datafusion::physical_plan::joins::{
    HashJoinExec, HashJoinExecBuilder, NestedLoopJoinExec, NestedLoopJoinExecBuilder,
};
use datafusion::physical_plan::{
    ChildrenPropertiesMode, DisplayAs, DisplayFormatType, ExecutionPlan, PlanProperties,
    ReplaceChildrenOptions,
};
use futures::Stream;

/// Batches an operator may hand on before others get their turn on its thread.
const BATCHES_BEFORE_YIELD: u32 = 16;

/// When a query has to end.
#[derive(Debug)]
pub(crate) struct Watch {
    deadline: Instant,
    stopped: AtomicBool,
}

impl Watch {
    pub(crate) fn until(deadline: Instant) -> Arc<Watch> {
        Arc::new(Watch {
            deadline,
            stopped: AtomicBool::new(false),
        })
    }

    /// Ends the query at its next look.
    pub(crate) fn stop(&self) {
        self.stopped.store(true, Ordering::Relaxed);
    }

    pub(crate) fn is_over(&self) -> bool {
        self.stopped.load(Ordering::Relaxed) || Instant::now() >= self.deadline
    }

    fn look(&self) -> Result<()> {
        if self.is_over() {
            exec_err!("the query was stopped")
        } else {
            Ok(())
        }
    }
}

/// `plan` with everything watched that could go on for long without being asked.
pub(crate) fn over(
    plan: Arc<dyn ExecutionPlan>,
    watch: &Arc<Watch>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let watched = plan.transform_up(|node| {
        let node = with_watched_condition(node, watch)?;
        // Joins hand on more rows than they get; a recursion gets its own.
        let multiplies = node.children().len() > 1 || node.name() == "UnnestExec";
        if !multiplies {
            return Ok(Transformed::yes(node));
        }
        let watched = WatchedExec {
            properties: Arc::clone(node.properties()),
            input: node,
            watch: Arc::clone(watch),
        };
        Ok(Transformed::yes(Arc::new(watched) as Arc<dyn ExecutionPlan>))
    });
    Ok(watched?.data)
}

fn with_watched_condition(
    node: Arc<dyn ExecutionPlan>,
    watch: &Arc<Watch>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let watched = |filter: &JoinFilter| {
        let expression = WatchedExpr {
            inner: Arc::clone(filter.expression()),
            watch: Arc::clone(watch),
        };
        JoinFilter::new(
            Arc::new(expression),
            filter.column_indices().to_vec(),
            Arc::clone(filter.schema()),
        )
    };
    let any: &dyn Any = node.as_ref();
    if let Some(join) = any.downcast_ref::<NestedLoopJoinExec>() {
        let filter = join.filter().map(watched);
        let join = NestedLoopJoinExecBuilder::from(join)
            .with_filter(filter)
            .build()?;
        return Ok(Arc::new(join));
    }
    if let Some(join) = any.downcast_ref::<HashJoinExec>() {
        let filter = join.filter().map(watched);
        let join = HashJoinExecBuilder::from(join)
            .with_filter(filter)
            .build()?;
        return Ok(Arc::new(join));
    }
    Ok(node)
}

/// Hands on what its input hands on, while there is time.
#[derive(Debug)]
struct WatchedExec {
    input: Arc<dyn ExecutionPlan>,
    properties: Arc<PlanProperties>,
    watch: Arc<Watch>,
}

impl DisplayAs for WatchedExec {
    fn fmt_as(&self, _: DisplayFormatType, f: &mut fmt::Formatter) -> fmt::Result {
        f.write_str("WatchedExec")
    }
}

impl ExecutionPlan for WatchedExec {
    fn name(&self) -> &str {
        "WatchedExec"
    }

    fn properties(&self) -> &Arc<PlanProperties> {
        &self.properties
    }

    fn maintains_input_order(&self) -> Vec<bool> {
        vec![true]
    }

    fn children(&self) -> Vec<&Arc<dyn ExecutionPlan>> {
        vec![&self.input]
    }

    fn apply_expressions(
        &self,
        _: &mut dyn FnMut(&Arc<dyn PhysicalExpr>) -> Result<TreeNodeRecursion>,
    ) -> Result<TreeNodeRecursion> {
        Ok(TreeNodeRecursion::Continue)
    }

    fn replace_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn ExecutionPlan>>,
        _: ReplaceChildrenOptions,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let (Some(input), true) = (children.pop(), children.is_empty()) else {
            return internal_err!("WatchedExec has one child");
        };
        Ok(Arc::new(WatchedExec {
            properties: Arc::clone(input.properties()),
            input,
            watch: Arc::clone(&self.watch),
        }))
    }

    fn with_new_children(
        self: Arc<Self>,
        children: Vec<Arc<dyn ExecutionPlan>>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        self.replace_children(
            children,
            ReplaceChildrenOptions::new(ChildrenPropertiesMode::Recompute),
        )
    }

    fn execute(
        &self,
        partition: usize,
        context: Arc<TaskContext>,
    ) -> Result<SendableRecordBatchStream> {
        Ok(Box::pin(WatchedStream {
            input: self.input.execute(partition, context)?,
            watch: Arc::clone(&self.watch),
            handed_on: 0,
        }))
    }
}

struct WatchedStream {
    input: SendableRecordBatchStream,
    watch: Arc<Watch>,
    handed_on: u32,
}

impl Stream for WatchedStream {
    type Item = Result<RecordBatch>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        if let Err(over) = self.watch.look() {
            return Poll::Ready(Some(Err(over)));
        }
        if self.handed_on == BATCHES_BEFORE_YIELD {
            self.handed_on = 0;
            context.waker().wake_by_ref();
            return Poll::Pending;
        }
        let polled = self.input.as_mut().poll_next(context);
        if polled.is_ready() {
            self.handed_on += 1;
        }
        polled
    }
}

impl RecordBatchStream for WatchedStream {
    fn schema(&self) -> SchemaRef {
        self.input.schema()
    }
}

/// A condition that fails when time is over.
#[derive(Debug)]
struct WatchedExpr {
    inner: Arc<dyn PhysicalExpr>,
    watch: Arc<Watch>,
}

impl PartialEq for WatchedExpr {
    fn eq(&self, other: &WatchedExpr) -> bool {
        self.inner.eq(&other.inner)
    }
}

impl Eq for WatchedExpr {}

impl Hash for WatchedExpr {
    fn hash<H: Hasher>(&self, state: &mut H) {
        self.inner.hash(state);
    }
}

impl fmt::Display for WatchedExpr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt(f)
    }
}

impl PhysicalExpr for WatchedExpr {
    fn data_type(&self, schema: &Schema) -> Result<DataType> {
        self.inner.data_type(schema)
    }

    fn nullable(&self, schema: &Schema) -> Result<bool> {
        self.inner.nullable(schema)
    }

    fn return_field(&self, schema: &Schema) -> Result<FieldRef> {
        self.inner.return_field(schema)
    }

    fn evaluate(&self, batch: &RecordBatch) -> Result<ColumnarValue> {
        self.watch.look()?;
        self.inner.evaluate(batch)
    }

    fn children(&self) -> Vec<&Arc<dyn PhysicalExpr>> {
        vec![&self.inner]
    }

    fn with_new_children(
        self: Arc<Self>,
        mut children: Vec<Arc<dyn PhysicalExpr>>,
    ) -> Result<Arc<dyn PhysicalExpr>> {
        let (Some(inner), true) = (children.pop(), children.is_empty()) else {
            return internal_err!("WatchedExpr has one child");
        };
        Ok(Arc::new(WatchedExpr {
            inner,
            watch: Arc::clone(&self.watch),
        }))
    }

    fn fmt_sql(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.inner.fmt_sql(f)
    }
}
