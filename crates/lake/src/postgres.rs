//! The door for PostgreSQL clients: psql, Grafana, Metabase, any driver.
//!
//! What arrives here takes the same path as everybody's SQL ([`Engine`]); this module only speaks the
//! protocol. Of datafusion-postgres it uses the type mapping, the system catalogue and the answers to
//! SET, SHOW and transaction statements, but neither its server nor its query handlers: those accept
//! everybody, run any statement on a shared session, and bound nothing.
//!
//! Who may connect: anybody who reaches the socket, and therefore only a loopback address is served
//! ([`serve`] refuses others). Authentication belongs into [`Door::startup_handler`], which today
//! answers "welcome" to all.

use std::fmt::Debug;
use std::io;
use std::sync::Arc;
use std::time::Duration;

use arrow::array::RecordBatch;
use arrow::datatypes::DataType;
use async_trait::async_trait;

use datafusion::common::ParamValues;
use datafusion::logical_expr::{EmptyRelation, LogicalPlan};
use datafusion::sql::sqlparser::ast::{Set, Statement};
use datafusion_postgres::QueryHook as _;
use datafusion_postgres::arrow_pg::datatypes::df::deserialize_parameters;
use datafusion_postgres::arrow_pg::datatypes::{
    arrow_schema_to_pg_fields, encode_recordbatch, into_pg_type,
};
use datafusion_postgres::hooks::set_show::SetShowHook;
use datafusion_postgres::hooks::transactions::TransactionStatementHook;
use futures::{Sink, StreamExt as _, stream};
use pgwire::api::auth::StartupHandler;
use pgwire::api::auth::noop::NoopStartupHandler;
use pgwire::api::cancel::{CancelHandler, DefaultCancelHandler};
use pgwire::api::portal::{Format, Portal};
use pgwire::api::query::{ExtendedQueryHandler, SimpleQueryHandler};
use pgwire::api::results::{FieldInfo, QueryResponse, Response, Tag};
use pgwire::api::stmt::QueryParser;
use pgwire::api::store::PortalStore;
use pgwire::api::{ClientInfo, ClientPortalStore, ConnectionManager, PgWireServerHandlers, Type};
use pgwire::error::{ErrorInfo, PgWireError, PgWireResult};
use pgwire::messages::PgWireBackendMessage;
use pgwire::types::format::FormatOptions;
use tokio::io::AsyncWriteExt as _;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use crate::options::QueryLimits;
use crate::query::{Engine, QueryError, RowStream, Work};
use crate::statement::{self, Purpose};

/// Pause after a failed accept (out of file descriptors): trying at once would spin.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Settings that datafusion-postgres keeps per connection. It would hand every other one to the
/// session all connections share.
const CONNECTION_SETTINGS: [&str; 7] = [
    "statement_timeout",
    "datestyle",
    "bytea_output",
    "intervalstyle",
    "application_name",
    "extra_float_digits",
    "search_path",
];

/// Where `SET statement_timeout` leaves its value, in milliseconds.
const STATEMENT_TIMEOUT: &str = "statement_timeout_ms";

/// Accepts until `stop`, then closes what is open.
pub(crate) async fn serve(
    engine: Arc<Engine>,
    listener: TcpListener,
    connections: usize,
    limits: QueryLimits,
    stop: CancellationToken,
) -> io::Result<()> {
    let address = listener.local_addr()?;
    if !address.ip().is_loopback() {
        return Err(io::Error::new(
            io::ErrorKind::PermissionDenied,
            format!(
                "the PostgreSQL port has no authentication yet, so it is not served on {address}; \
                 bind it to 127.0.0.1 or ::1 and tunnel to it"
            ),
        ));
    }
    let slots = Arc::new(Semaphore::new(connections));
    let manager = Arc::new(ConnectionManager::new());
    let mut open = JoinSet::new();
    loop {
        let accepted = tokio::select! {
            () = stop.cancelled() => break, // waiting on the token changes nothing
            accepted = listener.accept() => accepted, // takes a connection or none
            Some(_) = open.join_next() => continue, // only clears away what has ended
        };
        let stream = match accepted {
            Ok((stream, _)) => stream,
            Err(error) => {
                tracing::warn!(%error, "cannot accept a PostgreSQL connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            open.spawn(refuse(stream, connections));
            continue;
        };
        let door = Arc::new(Door {
            session: Arc::new(Session {
                engine: Arc::clone(&engine),
                limits,
            }),
            manager: Arc::clone(&manager),
        });
        open.spawn(async move {
            if let Err(error) = pgwire::tokio::process_socket(stream, None, door).await {
                tracing::debug!(%error, "a PostgreSQL connection ended");
            }
            drop(slot);
        });
    }
    // Dropping a connection's stream ends its query.
    open.shutdown().await;
    Ok(())
}

/// Says why, in the protocol's words, whatever the client was about to say.
async fn refuse(mut stream: TcpStream, limit: usize) {
    let message = format!("too many connections (at most {limit}); close one and try again");
    let mut fields = Vec::new();
    for (field, text) in [
        (b'S', "FATAL"),
        (b'V', "FATAL"),
        (b'C', "53300"),
        (b'M', &message),
    ] {
        fields.push(field);
        fields.extend_from_slice(text.as_bytes());
        fields.push(0);
    }
    fields.push(0);
    let mut packet = vec![b'E'];
    // Some hundred bytes.
    let length = u32::try_from(fields.len() + 4).unwrap_or(u32::MAX);
    packet.extend_from_slice(&length.to_be_bytes());
    packet.append(&mut fields);
    // Whoever does not read it has gone, which is as good.
    let sent = tokio::time::timeout(Duration::from_secs(1), stream.write_all(&packet)).await;
    if let Ok(Ok(())) = sent {
        let _ = stream.shutdown().await;
    }
}

/// The handlers of one connection.
struct Door {
    session: Arc<Session>,
    manager: Arc<ConnectionManager>,
}

/// Lets everybody in: see the module.
struct Welcome {
    manager: Arc<ConnectionManager>,
}

impl NoopStartupHandler for Welcome {
    fn connection_manager(&self) -> Option<Arc<ConnectionManager>> {
        Some(Arc::clone(&self.manager))
    }
}

impl PgWireServerHandlers for Door {
    fn simple_query_handler(&self) -> Arc<impl SimpleQueryHandler> {
        Arc::clone(&self.session)
    }

    fn extended_query_handler(&self) -> Arc<impl ExtendedQueryHandler> {
        Arc::clone(&self.session)
    }

    fn startup_handler(&self) -> Arc<impl StartupHandler> {
        Arc::new(Welcome {
            manager: Arc::clone(&self.manager),
        })
    }

    fn cancel_handler(&self) -> Arc<impl CancelHandler> {
        Arc::new(DefaultCancelHandler::new(Arc::clone(&self.manager)))
    }
}

/// Statements of one connection, on the engine of all.
struct Session {
    engine: Arc<Engine>,
    limits: QueryLimits,
}

/// A statement that was parsed and, if it reads, planned.
#[derive(Clone)]
struct Prepared {
    statement: Arc<Statement>,
    purpose: Purpose,
    /// With parameters still open. Of SET and the like: no columns.
    plan: Arc<LogicalPlan>,
}

impl Session {
    fn limits_of(&self, client: &(impl ClientInfo + ?Sized)) -> QueryLimits {
        let asked = client
            .metadata()
            .get(STATEMENT_TIMEOUT)
            .and_then(|text| text.parse().ok())
            .map(Duration::from_millis);
        QueryLimits {
            time: asked.map_or(self.limits.time, |asked| asked.min(self.limits.time)),
            ..self.limits
        }
    }

    /// Runs `work` and answers once its first rows are there, so that whatever fails early fails
    /// before a row is sent and can be cancelled until then.
    async fn rows(
        &self,
        work: Work,
        format: &Format,
        options: Arc<FormatOptions>,
        limits: QueryLimits,
    ) -> PgWireResult<Response> {
        let mut rows = self.engine.stream(work, limits).await.map_err(to_wire)?;
        let fields = Arc::new(arrow_schema_to_pg_fields(
            rows.schema(),
            format,
            Some(options),
        )?);
        let first = rows.next().await.transpose().map_err(to_wire)?;
        let of_batch = Arc::clone(&fields);
        let sent = stream::iter(first.map(Ok))
            .chain(remaining(rows))
            .flat_map(move |batch| {
                let fields = Arc::clone(&of_batch);
                match batch {
                    Ok(batch) => stream::iter(encode_recordbatch(fields, batch)).left_stream(),
                    Err(error) => stream::iter([Err(to_wire(error))]).right_stream(),
                }
            });
        Ok(Response::Query(QueryResponse::new(fields, sent)))
    }

    /// Answers SET, SHOW and transaction statements.
    async fn setting<C>(&self, client: &mut C, statement: &Statement) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        if let Statement::Set(set) = statement
            && !is_connection_setting(set)
        {
            let text = statement.to_string();
            return if text.to_ascii_lowercase().contains("datafusion") {
                Err(to_wire(statement::not_read_only(statement)))
            } else {
                // Drivers set all manner of things on connecting and expect a "SET" back.
                Ok(Response::Execution(Tag::new("SET")))
            };
        }
        let context = self.engine.context();
        if let Some(answer) = TransactionStatementHook
            .handle_simple_query(statement, context, client)
            .await
        {
            return answer;
        }
        match SetShowHook
            .handle_simple_query(statement, context, client)
            .await
        {
            Some(answer) => answer,
            None => Err(to_wire(statement::not_read_only(statement))),
        }
    }

    async fn prepare(
        &self,
        statement: Statement,
        limits: QueryLimits,
    ) -> Result<Prepared, QueryError> {
        let purpose = statement::purpose(&statement)?;
        let plan = match purpose {
            Purpose::Read => self.engine.plan(statement.clone(), limits).await?,
            // What SHOW answers is only known to the hook; it has one column of text. The other
            // statements have none.
            Purpose::Show => {
                self.engine
                    .plan(statement::one_text_column(), limits)
                    .await?
            }
            Purpose::Session => LogicalPlan::EmptyRelation(EmptyRelation {
                produce_one_row: false,
                schema: Arc::new(datafusion::common::DFSchema::empty()),
            }),
        };
        Ok(Prepared {
            statement: Arc::new(statement),
            purpose,
            plan: Arc::new(plan),
        })
    }
}

fn remaining(rows: RowStream) -> impl futures::Stream<Item = Result<RecordBatch, QueryError>> {
    stream::unfold(rows, |mut rows| async move {
        rows.next().await.map(|batch| (batch, rows))
    })
}

fn is_connection_setting(set: &Set) -> bool {
    match set {
        Set::SetTimeZone { .. } => true,
        Set::SingleAssignment { variable, .. } => {
            let name = variable.to_string().to_ascii_lowercase();
            CONNECTION_SETTINGS.contains(&name.as_str())
        }
        _ => false,
    }
}

fn to_wire(error: QueryError) -> PgWireError {
    PgWireError::UserError(Box::new(ErrorInfo::new(
        "ERROR".to_owned(),
        error.kind().sqlstate().to_owned(),
        error.to_string(),
    )))
}

#[async_trait]
impl SimpleQueryHandler for Session {
    async fn do_query<C>(&self, client: &mut C, query: &str) -> PgWireResult<Vec<Response>>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let statements = statement::parse(query).map_err(to_wire)?;
        if statements.is_empty() {
            return Ok(vec![Response::EmptyQuery]);
        }
        let mut answers = Vec::with_capacity(statements.len());
        for statement in statements {
            let answer = match statement::purpose(&statement).map_err(to_wire)? {
                Purpose::Show | Purpose::Session => self.setting(client, &statement).await?,
                Purpose::Read => {
                    let options = Arc::new(FormatOptions::from_client_metadata(client.metadata()));
                    let work = Work::Statement(Box::new(statement));
                    let limits = self.limits_of(client);
                    self.rows(work, &Format::UnifiedText, options, limits)
                        .await?
                }
            };
            answers.push(answer);
        }
        Ok(answers)
    }
}

#[async_trait]
impl ExtendedQueryHandler for Session {
    type Statement = Prepared;
    type QueryParser = Parser;

    fn query_parser(&self) -> Arc<Parser> {
        Arc::new(Parser {
            session: Session {
                engine: Arc::clone(&self.engine),
                limits: self.limits,
            },
        })
    }

    async fn do_query<C>(
        &self,
        client: &mut C,
        portal: &Portal<Prepared>,
        _max_rows: usize,
    ) -> PgWireResult<Response>
    where
        C: ClientInfo + ClientPortalStore + Sink<PgWireBackendMessage> + Unpin + Send + Sync,
        C::PortalStore: PortalStore<Statement = Prepared>,
        C::Error: Debug,
        PgWireError: From<<C as Sink<PgWireBackendMessage>>::Error>,
    {
        let prepared = &portal.statement.statement;
        if prepared.purpose != Purpose::Read {
            return self.setting(client, &prepared.statement).await;
        }
        let limits = self.limits_of(client);
        let types = parameters(&prepared.plan)?;
        let known: Vec<Option<&DataType>> = types.iter().map(Option::as_ref).collect();
        let values: ParamValues = deserialize_parameters(portal, &known)?;
        let plan = LogicalPlan::clone(&prepared.plan)
            .replace_params_with_values(&values)
            .map_err(|error| PgWireError::ApiError(Box::new(error)))?;
        let options = Arc::new(FormatOptions::from_client_metadata(client.metadata()));
        let work = Work::Plan(Box::new(plan));
        self.rows(work, &portal.result_column_format, options, limits)
            .await
    }
}

/// Makes prepared statements.
struct Parser {
    session: Session,
}

#[async_trait]
impl QueryParser for Parser {
    type Statement = Prepared;

    async fn parse_sql<C>(
        &self,
        client: &C,
        sql: &str,
        _types: &[Option<Type>],
    ) -> PgWireResult<Option<Prepared>>
    where
        C: ClientInfo + Unpin + Send + Sync,
    {
        let mut statements = statement::parse(sql).map_err(to_wire)?;
        let Some(statement) = statements.pop() else {
            return Ok(None);
        };
        if !statements.is_empty() {
            return Err(to_wire(QueryError::Syntax {
                message: "a prepared statement is exactly one statement".to_owned(),
            }));
        }
        let limits = self.session.limits_of(client);
        self.session
            .prepare(statement, limits)
            .await
            .map(Some)
            .map_err(to_wire)
    }

    fn get_parameter_types(&self, prepared: &Prepared) -> PgWireResult<Vec<Type>> {
        parameters(&prepared.plan)?
            .iter()
            .map(|known| known.as_ref().map_or(Ok(Type::UNKNOWN), into_pg_type))
            .collect()
    }

    fn get_result_schema(
        &self,
        prepared: &Prepared,
        format: Option<&Format>,
    ) -> PgWireResult<Vec<FieldInfo>> {
        let schema = prepared.plan.schema();
        arrow_schema_to_pg_fields(
            schema.as_arrow(),
            format.unwrap_or(&Format::UnifiedText),
            None,
        )
    }
}

/// The types of `$1`, `$2` … as far as the plan tells.
fn parameters(plan: &LogicalPlan) -> PgWireResult<Vec<Option<DataType>>> {
    let found = plan
        .get_parameter_types()
        .map_err(|error| PgWireError::ApiError(Box::new(error)))?;
    let mut ordered: Vec<(u32, Option<DataType>)> = found
        .into_iter()
        .map(|(name, known)| {
            (
                name.trim_start_matches('$').parse().unwrap_or(u32::MAX),
                known,
            )
        })
        .collect();
    ordered.sort_by_key(|(number, _)| *number);
    Ok(ordered.into_iter().map(|(_, known)| known).collect())
}
