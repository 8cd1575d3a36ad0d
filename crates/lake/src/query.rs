//! The one path on which SQL reaches rows, whichever door it came through.
//!
//! Flow: text -> [`statement`](crate::statement) (may it run?) -> a slot -> plan -> check that the
//! plan only reads -> execute -> batches through a short channel -> the door.
//!
//! Queries run on threads of their own, so a heavy join delays no vehicle's message. Each has a
//! memory pool of its own, nothing is spilled to disk, and one deadline covers waiting, planning and
//! the last row. An answer that hits a limit is an error, never a shorter answer; a stream that
//! ends without saying "done" is an error too.

use std::sync::Arc;
use std::time::{Duration, Instant};

use arrow::array::RecordBatch;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use datafusion::common::{DataFusionError, SchemaError};
use datafusion::execution::disk_manager::{DiskManagerBuilder, DiskManagerMode};
use datafusion::execution::memory_pool::GreedyMemoryPool;
use datafusion::execution::runtime_env::RuntimeEnvBuilder;
use datafusion::execution::{SessionState, SessionStateBuilder, TaskContext};
use datafusion::logical_expr::{LogicalPlan, LogicalPlanBuilder};
use datafusion::physical_plan::execute_stream;
use datafusion::prelude::{SQLOptions, SessionConfig, SessionContext};
use datafusion::sql::parser::Statement as PlannedStatement;
use datafusion::sql::sqlparser::ast::Statement;
use datafusion_postgres::datafusion_pg_catalog::pg_catalog::context::EmptyContextProvider;
use datafusion_postgres::datafusion_pg_catalog::setup_pg_catalog;
use futures::StreamExt as _;
use tokio::runtime::Runtime;
use tokio::sync::{Semaphore, mpsc, oneshot};
use tokio::task::AbortHandle;

use crate::capped;
use crate::catalog::{self, Sources};
use crate::error::LakeError;
use crate::metrics::{Counters, Outcome};
use crate::options::QueryLimits;
use crate::statement;
use crate::tables::Tables;
use crate::watch::{self, Watch};

/// How long a query waits for another one to end before it is refused as busy.
const SLOT_WAIT: Duration = Duration::from_secs(2);
/// How much longer than its deadline a query is waited for, so that the error names the real cause.
const GRACE: Duration = Duration::from_millis(250);
/// Batches between the query's threads and the door: one being sent, one being made.
const BATCHES_AHEAD: usize = 2;

/// Why a query has no answer. The text names the limit and the remedy and may be shown to whoever
/// asked.
#[derive(Debug, thiserror::Error)]
pub enum QueryError {
    /// Not SQL, or not valid here (types, functions, grouping).
    #[error("{message}")]
    Syntax {
        /// What is wrong with it.
        message: String,
    },
    /// A table, column or function that does not exist.
    #[error("{message}")]
    NotFound {
        /// What was not found, and what there is.
        message: String,
    },
    /// A statement that would change something.
    #[error("{statement} is not possible: SQL here only reads (SELECT, EXPLAIN, SHOW, DESCRIBE)")]
    NotReadOnly {
        /// Its first word.
        statement: String,
    },
    /// More rows than allowed.
    #[error(
        "the answer has more than {limit} rows; add LIMIT, aggregate, or ask for it in parts \
         (by vehicle_id or time)"
    )]
    RowLimit {
        /// The most rows an answer may have.
        limit: usize,
    },
    /// More time than allowed.
    #[error(
        "the query took longer than {limit:?}; narrow it down (by vehicle_id, signal or date), or \
         run it on the Delta tables with an engine of your own"
    )]
    TimeLimit {
        /// The longest a query may take.
        limit: Duration,
    },
    /// More memory than allowed.
    #[error(
        "the query needs more than {} MiB of memory; filter or aggregate first, or select fewer \
         columns", .limit >> 20
    )]
    MemoryLimit {
        /// Bytes a query may use.
        limit: usize,
    },
    /// Too many queries at once.
    #[error("{limit} queries are running already; try again in a moment")]
    Busy {
        /// The most queries that run at the same time.
        limit: usize,
    },
    /// The data does not allow it: a division by zero, text that is no number.
    #[error("{message}")]
    Execution {
        /// What went wrong with which value.
        message: String,
    },
    /// Our fault.
    #[error("the query failed inside: {source}")]
    Internal {
        /// Why.
        #[source]
        source: Box<DataFusionError>,
    },
}

/// The kinds of [`QueryError`], stable names for programs.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum QueryErrorKind {
    /// [`QueryError::Syntax`]
    Syntax,
    /// [`QueryError::NotFound`]
    NotFound,
    /// [`QueryError::NotReadOnly`]
    NotReadOnly,
    /// [`QueryError::RowLimit`]
    RowLimit,
    /// [`QueryError::TimeLimit`]
    TimeLimit,
    /// [`QueryError::MemoryLimit`]
    MemoryLimit,
    /// [`QueryError::Busy`]
    Busy,
    /// [`QueryError::Execution`]
    Execution,
    /// [`QueryError::Internal`]
    Internal,
}

impl QueryErrorKind {
    /// All kinds, in the order of their declaration.
    pub const ALL: [QueryErrorKind; 9] = [
        QueryErrorKind::Syntax,
        QueryErrorKind::NotFound,
        QueryErrorKind::NotReadOnly,
        QueryErrorKind::RowLimit,
        QueryErrorKind::TimeLimit,
        QueryErrorKind::MemoryLimit,
        QueryErrorKind::Busy,
        QueryErrorKind::Execution,
        QueryErrorKind::Internal,
    ];

    /// For programs and metrics: `row-limit` and the like. Never changes.
    pub fn name(self) -> &'static str {
        match self {
            QueryErrorKind::Syntax => "syntax",
            QueryErrorKind::NotFound => "not-found",
            QueryErrorKind::NotReadOnly => "not-read-only",
            QueryErrorKind::RowLimit => "row-limit",
            QueryErrorKind::TimeLimit => "time-limit",
            QueryErrorKind::MemoryLimit => "memory-limit",
            QueryErrorKind::Busy => "busy",
            QueryErrorKind::Execution => "execution",
            QueryErrorKind::Internal => "internal",
        }
    }

    /// The PostgreSQL error code (SQLSTATE) of this kind.
    pub fn sqlstate(self) -> &'static str {
        match self {
            QueryErrorKind::Syntax => "42601",
            QueryErrorKind::NotFound => "42P01",
            QueryErrorKind::NotReadOnly => "25006",
            QueryErrorKind::RowLimit => "54000",
            QueryErrorKind::TimeLimit => "57014",
            QueryErrorKind::MemoryLimit => "53200",
            QueryErrorKind::Busy => "53300",
            QueryErrorKind::Execution => "22000",
            QueryErrorKind::Internal => "XX000",
        }
    }
}

impl QueryError {
    /// Its kind.
    pub fn kind(&self) -> QueryErrorKind {
        match self {
            QueryError::Syntax { .. } => QueryErrorKind::Syntax,
            QueryError::NotFound { .. } => QueryErrorKind::NotFound,
            QueryError::NotReadOnly { .. } => QueryErrorKind::NotReadOnly,
            QueryError::RowLimit { .. } => QueryErrorKind::RowLimit,
            QueryError::TimeLimit { .. } => QueryErrorKind::TimeLimit,
            QueryError::MemoryLimit { .. } => QueryErrorKind::MemoryLimit,
            QueryError::Busy { .. } => QueryErrorKind::Busy,
            QueryError::Execution { .. } => QueryErrorKind::Execution,
            QueryError::Internal { .. } => QueryErrorKind::Internal,
        }
    }

    fn of(error: DataFusionError, limits: &QueryLimits) -> QueryError {
        let message = || {
            let text = error.find_root().strip_backtrace();
            // "Error during planning: …" says where in the engine, which helps nobody.
            text.split_once(": ")
                .map_or(text.clone(), |(_, rest)| rest.to_owned())
        };
        match error.find_root() {
            DataFusionError::SQL(parser, _) => QueryError::Syntax {
                message: parser.to_string(),
            },
            DataFusionError::SchemaError(schema, _) => match &**schema {
                SchemaError::FieldNotFound { .. } => QueryError::NotFound { message: message() },
                _ => QueryError::Syntax { message: message() },
            },
            DataFusionError::Plan(text) if text.contains("not found") => {
                QueryError::NotFound { message: message() }
            }
            DataFusionError::Plan(_)
            | DataFusionError::NotImplemented(_)
            | DataFusionError::Configuration(_)
            | DataFusionError::Diagnostic(..)
            | DataFusionError::Collection(_) => QueryError::Syntax { message: message() },
            DataFusionError::ResourcesExhausted(_) => QueryError::MemoryLimit {
                limit: limits.memory,
            },
            DataFusionError::Execution(_) => QueryError::Execution { message: message() },
            DataFusionError::ArrowError(arrow, _) => match &**arrow {
                ArrowError::DivideByZero
                | ArrowError::CastError(_)
                | ArrowError::ParseError(_)
                | ArrowError::ArithmeticOverflow(_)
                | ArrowError::InvalidArgumentError(_)
                | ArrowError::ComputeError(_) => QueryError::Execution {
                    message: arrow.to_string(),
                },
                ArrowError::MemoryError(_) => QueryError::MemoryLimit {
                    limit: limits.memory,
                },
                _ => QueryError::Internal {
                    source: Box::new(error),
                },
            },
            _ => QueryError::Internal {
                source: Box::new(error),
            },
        }
    }
}

/// The answer to a query, complete.
#[derive(Debug, Clone)]
pub struct QueryResult {
    /// Names and types of the columns.
    pub schema: SchemaRef,
    /// The rows.
    pub batches: Vec<RecordBatch>,
    /// From arrival to the last row.
    pub elapsed: Duration,
}

impl QueryResult {
    /// Number of rows.
    pub fn rows(&self) -> usize {
        self.batches.iter().map(RecordBatch::num_rows).sum()
    }
}

/// What is to be executed.
pub(crate) enum Work {
    /// A statement that [`statement::purpose`] let through.
    Statement(Box<Statement>),
    /// A plan that [`Engine::plan`] made, parameters filled in.
    Plan(Box<LogicalPlan>),
}

/// See the module.
pub(crate) struct Engine {
    context: Arc<SessionContext>,
    tables: Arc<Tables>,
    counters: Arc<Counters>,
    slots: Arc<Semaphore>,
    concurrent: usize,
    /// `None` only while being dropped.
    runtime: Option<Runtime>,
}

impl Drop for Engine {
    fn drop(&mut self) {
        // Waiting for threads is not allowed in async code; running queries end at their next batch.
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

impl Engine {
    pub(crate) async fn new(
        threads: usize,
        concurrent: usize,
        tables: Arc<Tables>,
        schemas: [SchemaRef; 2],
        sources: Sources,
        counters: Arc<Counters>,
    ) -> Result<Engine, LakeError> {
        let engine = |source| LakeError::Engine {
            source: Box::new(source),
        };
        let config = SessionConfig::new()
            .with_default_catalog_and_schema(catalog::CATALOG, catalog::DEFAULT_SCHEMA)
            .with_create_default_catalog_and_schema(false)
            .with_information_schema(true)
            .with_target_partitions(threads);
        let no_spilling = DiskManagerBuilder::default().with_mode(DiskManagerMode::Disabled);
        let runtime_env = RuntimeEnvBuilder::new()
            .with_disk_manager_builder(no_spilling)
            .build_arc()
            .map_err(engine)?;
        let context = Arc::new(SessionContext::new_with_config_rt(config, runtime_env));
        catalog::register(&context, schemas, sources)
            .await
            .map_err(engine)?;
        setup_pg_catalog(&context, catalog::CATALOG, EmptyContextProvider)
            .map_err(|source| LakeError::Engine { source })?;
        capped::cap(&context);
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(threads.max(1))
            .thread_name("lake-query")
            // Plans are walked by recursion; see `statement::MAX_OPERATORS`.
            .thread_stack_size(16 << 20)
            .enable_all()
            .build()
            .map_err(|source| engine(DataFusionError::IoError(source)))?;
        Ok(Engine {
            context,
            tables,
            counters,
            slots: Arc::new(Semaphore::new(concurrent.max(1))),
            concurrent: concurrent.max(1),
            runtime: Some(runtime),
        })
    }

    /// The session everything is planned in. Scanning through it is refused: only [`Engine`] gives
    /// a query its view.
    pub(crate) fn context(&self) -> &Arc<SessionContext> {
        &self.context
    }

    /// Answers `sql`, one statement that reads, with all its rows in memory.
    pub(crate) async fn query(
        self: &Arc<Self>,
        sql: &str,
        limits: QueryLimits,
    ) -> Result<QueryResult, QueryError> {
        let started = Instant::now();
        let statement = match statement::parse_one(sql) {
            Ok(statement) => statement,
            Err(error) => {
                self.counters.query_ended(Outcome::Failed(error.kind()));
                return Err(error);
            }
        };
        let mut stream = self
            .stream(Work::Statement(Box::new(statement)), limits)
            .await?;
        let schema = Arc::clone(stream.schema());
        let mut batches = Vec::new();
        let mut bytes = 0;
        while let Some(batch) = stream.next().await {
            let batch = batch?;
            bytes += crate::encode::logical_bytes(&batch);
            if bytes > limits.memory {
                return Err(stream.fail(QueryError::MemoryLimit {
                    limit: limits.memory,
                }));
            }
            batches.push(batch);
        }
        Ok(QueryResult {
            schema,
            batches,
            elapsed: started.elapsed(),
        })
    }

    /// Answers `sql` as a stream.
    pub(crate) async fn rows_of(
        self: &Arc<Self>,
        sql: String,
        limits: QueryLimits,
    ) -> Result<RowStream, QueryError> {
        let statement = statement::parse_one(&sql)?;
        self.stream(Work::Statement(Box::new(statement)), limits)
            .await
    }

    /// Starts `work` and returns once its columns are known.
    pub(crate) async fn stream(
        self: &Arc<Self>,
        work: Work,
        limits: QueryLimits,
    ) -> Result<RowStream, QueryError> {
        let deadline = tokio::time::Instant::now() + limits.time;
        // Waited for here, not among the queries: when those take all their threads, being refused
        // must not take long as well.
        let slots = Arc::clone(&self.slots);
        let slot = tokio::time::timeout(SLOT_WAIT.min(limits.time), slots.acquire_owned()).await;
        let Ok(Ok(slot)) = slot else {
            let error = QueryError::Busy {
                limit: self.concurrent,
            };
            self.counters.query_ended(Outcome::Failed(error.kind()));
            return Err(error);
        };
        let (schema_sender, schema) = oneshot::channel();
        let (batch_sender, batches) = mpsc::channel(BATCHES_AHEAD);
        let watch = Watch::until(deadline.into_std());
        let engine = Arc::clone(self);
        let watched = Arc::clone(&watch);
        let task = self.spawn(async move {
            let run = engine.run(work, limits, &watched, schema_sender, &batch_sender);
            let late = || QueryError::TimeLimit { limit: limits.time };
            let end = match tokio::time::timeout_at(deadline, run).await {
                // Whatever it stumbled over after its time was over was the watch.
                Ok(Err(_)) if watched.is_over() => Err(late()),
                Ok(end) => end,
                Err(_) => Err(late()),
            };
            // If the door has gone, nobody wants to know.
            let _ = batch_sender.send(end.map(|()| Item::Done)).await;
            drop(slot);
        });
        let mut stream = RowStream {
            schema: Arc::new(arrow::datatypes::Schema::empty()),
            batches,
            deadline: deadline + GRACE,
            limits,
            task,
            watch,
            counters: Arc::clone(&self.counters),
            ended: false,
        };
        match tokio::time::timeout_at(stream.deadline, schema).await {
            Ok(Ok(schema)) => {
                stream.schema = schema;
                Ok(stream)
            }
            // It failed before it had columns; the channel says why.
            Ok(Err(_)) => match stream.next().await {
                Some(Err(error)) => Err(error),
                _ => Err(stream.fail(vanished())),
            },
            Err(_) => Err(stream.fail(QueryError::TimeLimit { limit: limits.time })),
        }
    }

    /// Plans `statement`, which may have parameters, without running it.
    pub(crate) async fn plan(
        self: &Arc<Self>,
        statement: Statement,
        limits: QueryLimits,
    ) -> Result<LogicalPlan, QueryError> {
        let engine = Arc::clone(self);
        let (sender, planned) = oneshot::channel();
        let task = self.spawn(async move {
            let state = engine.context.state();
            // If whoever asked has gone, nobody wants the plan.
            let _ = sender.send(plan(&state, statement, &limits).await);
        });
        match tokio::time::timeout(limits.time, planned).await {
            Ok(Ok(plan)) => plan,
            Ok(Err(_)) => Err(vanished()),
            Err(_) => {
                task.abort();
                Err(QueryError::TimeLimit { limit: limits.time })
            }
        }
    }

    fn spawn(&self, work: impl Future<Output = ()> + Send + 'static) -> AbortHandle {
        match &self.runtime {
            Some(runtime) => runtime.spawn(work).abort_handle(),
            // Only while being dropped, when no door can call any more.
            None => tokio::spawn(async {}).abort_handle(),
        }
    }

    async fn run(
        &self,
        work: Work,
        limits: QueryLimits,
        watch: &Arc<Watch>,
        schema: oneshot::Sender<SchemaRef>,
        batches: &mpsc::Sender<Result<Item, QueryError>>,
    ) -> Result<(), QueryError> {
        let failed = |error| QueryError::of(error, &limits);
        let state = self.session(&limits).map_err(failed)?;
        let logical = match work {
            Work::Statement(statement) => plan(&state, *statement, &limits).await?,
            Work::Plan(plan) => *plan,
        };
        read_only(&logical)?;
        let logical = match logical {
            // These are not relations one can put a limit on, and they are short.
            LogicalPlan::Explain(_) | LogicalPlan::Analyze(_) | LogicalPlan::DescribeTable(_) => {
                logical
            }
            // One row more than allowed is enough to know that there are too many.
            relation => LogicalPlanBuilder::from(relation)
                .limit(0, Some(limits.rows.saturating_add(1)))
                .and_then(LogicalPlanBuilder::build)
                .map_err(failed)?,
        };
        let physical = state.create_physical_plan(&logical).await.map_err(failed)?;
        let physical = watch::over(physical, watch).map_err(failed)?;
        let context = Arc::new(TaskContext::from(&state));
        let mut rows = execute_stream(physical, context).map_err(failed)?;
        if schema.send(rows.schema()).is_err() {
            return Ok(());
        }
        let mut count = 0;
        while let Some(batch) = rows.next().await {
            let batch = batch.map_err(failed)?;
            count += batch.num_rows();
            if count > limits.rows {
                return Err(QueryError::RowLimit { limit: limits.rows });
            }
            if batches.send(Ok(Item::Rows(batch))).await.is_err() {
                return Ok(());
            }
        }
        Ok(())
    }

    /// A session that sees this moment and may use this much memory.
    fn session(&self, limits: &QueryLimits) -> Result<SessionState, DataFusionError> {
        let state = self.context.state();
        let runtime = RuntimeEnvBuilder::from_runtime_env(state.runtime_env())
            .with_memory_pool(Arc::new(GreedyMemoryPool::new(limits.memory)))
            .build_arc()?;
        let config = state
            .config()
            .clone()
            .with_extension(Arc::new(self.tables.view()));
        Ok(SessionStateBuilder::new_from_existing(state)
            .with_config(config)
            .with_runtime_env(runtime)
            .build())
    }
}

async fn plan(
    state: &SessionState,
    statement: Statement,
    limits: &QueryLimits,
) -> Result<LogicalPlan, QueryError> {
    let statement = PlannedStatement::Statement(Box::new(statement));
    let plan = state
        .statement_to_plan(statement)
        .await
        .map_err(|error| QueryError::of(error, limits))?;
    read_only(&plan)?;
    Ok(plan)
}

/// The second lock on the door: whatever the statement looked like, its plan must only read.
fn read_only(plan: &LogicalPlan) -> Result<(), QueryError> {
    SQLOptions::new()
        .with_allow_ddl(false)
        .with_allow_dml(false)
        .with_allow_statements(false)
        .verify_plan(plan)
        .map_err(|error| QueryError::NotReadOnly {
            statement: error
                .strip_backtrace()
                .rsplit(": ")
                .next()
                .unwrap_or("this")
                .to_owned(),
        })
}

fn vanished() -> QueryError {
    QueryError::Internal {
        source: Box::new(DataFusionError::Execution(
            "the query ended without a result".to_owned(),
        )),
    }
}

enum Item {
    Rows(RecordBatch),
    Done,
}

/// An answer as it is made. Dropping it ends the query.
pub(crate) struct RowStream {
    schema: SchemaRef,
    batches: mpsc::Receiver<Result<Item, QueryError>>,
    deadline: tokio::time::Instant,
    limits: QueryLimits,
    task: AbortHandle,
    watch: Arc<Watch>,
    counters: Arc<Counters>,
    ended: bool,
}

impl RowStream {
    pub(crate) fn schema(&self) -> &SchemaRef {
        &self.schema
    }

    /// The next rows; `None` after the last.
    pub(crate) async fn next(&mut self) -> Option<Result<RecordBatch, QueryError>> {
        if self.ended {
            return None;
        }
        // Cancel-safe: receiving takes an item or none.
        match tokio::time::timeout_at(self.deadline, self.batches.recv()).await {
            Ok(Some(Ok(Item::Rows(batch)))) => Some(Ok(batch)),
            Ok(Some(Ok(Item::Done))) => {
                self.ended = true;
                self.counters.query_ended(Outcome::Ok);
                None
            }
            Ok(Some(Err(error))) => Some(Err(self.fail(error))),
            Ok(None) => Some(Err(self.fail(vanished()))),
            Err(_) => {
                let error = QueryError::TimeLimit {
                    limit: self.limits.time,
                };
                Some(Err(self.fail(error)))
            }
        }
    }

    /// Ends the query with `error`.
    pub(crate) fn fail(&mut self, error: QueryError) -> QueryError {
        self.ended = true;
        self.watch.stop();
        self.task.abort();
        self.counters.query_ended(Outcome::Failed(error.kind()));
        if let QueryError::Internal { source } = &error {
            tracing::error!(error = %source, "a query failed inside");
        }
        error
    }
}

impl Drop for RowStream {
    fn drop(&mut self) {
        if !self.ended {
            self.watch.stop();
            self.task.abort();
            self.counters.query_ended(Outcome::Cancelled);
        }
    }
}
