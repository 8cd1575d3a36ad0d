//! What SQL can name.
//!
//! | name | rows |
//! |---|---|
//! | `bronze.messages`, `silver.signals` | what is in the Delta tables |
//! | `live.messages`, `live.signals` | what is not yet |
//! | `messages`, `signals` | both, each row once |
//! | `last_known_state` | newest reading of every signal of every vehicle |
//! | `fleet.vehicles`, `fleet.devices` | the registry |
//! | `vehicles` | the registry with `last_seen_time` |
//!
//! The providers hold no rows. A query carries its [`View`] as an extension of its session, and each
//! scan takes its rows from there, so all scans of one query see one moment, and a prepared statement
//! sees the moment it is executed, not the one it was prepared in.

use std::sync::{Arc, OnceLock};

use arrow::array::{Array as _, RecordBatch, RecordBatchOptions};
use arrow::compute::cast;
use arrow::datatypes::SchemaRef;
use arrow::error::ArrowError;
use async_trait::async_trait;
use datafusion::catalog::memory::MemorySourceConfig;
use datafusion::catalog::{
    CatalogProvider as _, MemoryCatalogProvider, MemorySchemaProvider, SchemaProvider as _,
    Session, TableProvider,
};
use datafusion::common::{DataFusionError, Result, exec_datafusion_err};
use datafusion::logical_expr::expr_rewriter::unnormalize_col;
use datafusion::logical_expr::{
    BinaryExpr, Expr, LogicalPlan, LogicalPlanBuilder, Operator, TableProviderFilterPushDown,
    TableType,
};
use datafusion::physical_plan::ExecutionPlan;
use datafusion::physical_plan::union::UnionExec;
use datafusion::prelude::SessionContext;
use datafusion::scalar::ScalarValue;
use signals::Catalogue;

use crate::columns::RowTable;
use crate::last_known::{self, LastKnown};
use crate::registry::{self, Registry};
use crate::tables::View;

/// Name of the catalogue (a "database" to PostgreSQL's clients).
pub(crate) const CATALOG: &str = "milepost";
/// Where unqualified names are looked up.
pub(crate) const DEFAULT_SCHEMA: &str = "public";

/// `last_known_state`, computed from the rows. The order is that of [`LastKnown`].
const LAST_KNOWN_FROM_ROWS: &str = "\
    select vehicle_id, signal, time, value, text, unit, device_id, received_time \
    from (select *, row_number() over (partition by vehicle_id, signal \
          order by least(time, received_time) desc, \"offset\" desc, seq desc) as newest \
          from signals) as ranked \
    where newest = 1";

/// Everything the catalogue shows besides rows of the two row tables.
pub(crate) struct Sources {
    pub(crate) last_known: Arc<LastKnown>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) units: Arc<Catalogue>,
}

/// Registers all tables in `context`. `schemas` are those of the Delta tables' providers.
pub(crate) async fn register(
    context: &SessionContext,
    schemas: [SchemaRef; 2],
    sources: Sources,
) -> Result<()> {
    let catalog = Arc::new(MemoryCatalogProvider::new());
    context.register_catalog(CATALOG, Arc::clone(&catalog) as _);
    let schema = |name: &str| -> Result<Arc<MemorySchemaProvider>> {
        let schema = Arc::new(MemorySchemaProvider::new());
        catalog.register_schema(name, Arc::clone(&schema) as _)?;
        Ok(schema)
    };
    let public = schema(DEFAULT_SCHEMA)?;
    let bronze = schema("bronze")?;
    let silver = schema("silver")?;
    let live = schema("live")?;
    let fleet = schema("fleet")?;

    for (table, columns) in RowTable::ALL.into_iter().zip(schemas) {
        let rows = |part| {
            Arc::new(RowsTable {
                table,
                part,
                schema: Arc::clone(&columns),
            }) as Arc<dyn TableProvider>
        };
        let (cold, name) = match table {
            RowTable::Messages => (&bronze, "messages"),
            RowTable::Signals => (&silver, "signals"),
        };
        cold.register_table(name.to_owned(), rows(Part::Cold))?;
        live.register_table(name.to_owned(), rows(Part::Hot))?;
        public.register_table(name.to_owned(), rows(Part::Both))?;
    }
    for (schema, name, kind) in [
        (&fleet, "vehicles", RegistryKind::Vehicles),
        (&fleet, "devices", RegistryKind::Devices),
        (&public, "vehicles", RegistryKind::VehiclesView),
    ] {
        let table = RegistryTable {
            kind,
            registry: Arc::clone(&sources.registry),
            last_known: Arc::clone(&sources.last_known),
        };
        schema.register_table(name.to_owned(), Arc::new(table))?;
    }
    let last_known_state = Arc::new(LastKnownTable {
        schema: last_known::schema(),
        last_known: sources.last_known,
        units: sources.units,
        from_rows: OnceLock::new(),
    });
    public.register_table(
        "last_known_state".to_owned(),
        Arc::clone(&last_known_state) as _,
    )?;
    let from_rows = context
        .state()
        .create_logical_plan(LAST_KNOWN_FROM_ROWS)
        .await?;
    // Set once, here, before anyone else has the table.
    let _ = last_known_state.from_rows.set(from_rows);
    Ok(())
}

/// Which rows of a row table.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Part {
    Cold,
    Hot,
    Both,
}

#[derive(Debug)]
struct RowsTable {
    table: RowTable,
    part: Part,
    schema: SchemaRef,
}

#[async_trait]
impl TableProvider for RowsTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        match self.part {
            Part::Cold | Part::Hot => TableType::Base,
            Part::Both => TableType::View,
        }
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let view = state.config().get_extension::<View>().ok_or_else(|| {
            exec_datafusion_err!(
                "{} was scanned outside of a query",
                self.table.qualified_name()
            )
        })?;
        let view = view.table(self.table);
        let hot = || -> Result<Arc<dyn ExecutionPlan>> {
            let partitions = state.config().target_partitions();
            hot_rows(&view.hot, &self.schema, projection, partitions)
        };
        match self.part {
            Part::Cold => view.cold.scan(state, projection, filters, limit).await,
            Part::Hot => hot(),
            Part::Both if view.hot.is_empty() => {
                view.cold.scan(state, projection, filters, limit).await
            }
            Part::Both => {
                let cold = view.cold.scan(state, projection, filters, limit).await?;
                UnionExec::try_new(vec![cold, hot()?])
            }
        }
    }
}

/// Hot rows in the types a scan of the Delta table yields.
fn hot_rows(
    batches: &[Arc<RecordBatch>],
    schema: &SchemaRef,
    projection: Option<&Vec<usize>>,
    partitions: usize,
) -> Result<Arc<dyn ExecutionPlan>> {
    let columns = match projection {
        Some(columns) => columns.clone(),
        None => (0..schema.fields().len()).collect(),
    };
    let projected = Arc::new(schema.project(&columns)?);
    let cast_batch = |batch: &Arc<RecordBatch>| -> Result<RecordBatch, ArrowError> {
        let arrays = columns
            .iter()
            .map(|&column| {
                let wanted = schema.field(column).data_type();
                let array = batch.column(column);
                if array.data_type() == wanted {
                    Ok(Arc::clone(array))
                } else {
                    cast(array, wanted)
                }
            })
            .collect::<Result<Vec<_>, _>>()?;
        let options = RecordBatchOptions::new().with_row_count(Some(batch.num_rows()));
        RecordBatch::try_new_with_options(Arc::clone(&projected), arrays, &options)
    };
    let per_partition = batches.len().div_ceil(partitions.max(1)).max(1);
    let partitions = batches
        .chunks(per_partition)
        .map(|chunk| chunk.iter().map(cast_batch).collect())
        .collect::<Result<Vec<Vec<_>>, ArrowError>>()?;
    let partitions = if partitions.is_empty() {
        vec![Vec::new()]
    } else {
        partitions
    };
    let source = MemorySourceConfig::try_new_exec(&partitions, projected, None)?;
    Ok(source)
}

fn one_batch(
    batch: RecordBatch,
    projection: Option<&Vec<usize>>,
) -> Result<Arc<dyn ExecutionPlan>> {
    let schema = batch.schema();
    let source = MemorySourceConfig::try_new_exec(&[vec![batch]], schema, projection.cloned())?;
    Ok(source)
}

#[derive(Debug, Clone, Copy)]
enum RegistryKind {
    Vehicles,
    VehiclesView,
    Devices,
}

struct RegistryTable {
    kind: RegistryKind,
    registry: Arc<Registry>,
    last_known: Arc<LastKnown>,
}

impl std::fmt::Debug for RegistryTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RegistryTable({:?})", self.kind)
    }
}

#[async_trait]
impl TableProvider for RegistryTable {
    fn schema(&self) -> SchemaRef {
        match self.kind {
            RegistryKind::Vehicles => registry::vehicles_schema(),
            RegistryKind::VehiclesView => registry::vehicles_view_schema(),
            RegistryKind::Devices => registry::devices_schema(),
        }
    }

    fn table_type(&self) -> TableType {
        match self.kind {
            RegistryKind::Vehicles | RegistryKind::Devices => TableType::Base,
            RegistryKind::VehiclesView => TableType::View,
        }
    }

    async fn scan(
        &self,
        _state: &dyn Session,
        projection: Option<&Vec<usize>>,
        _filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        let rows = self
            .registry
            .rows()
            .await
            .map_err(DataFusionError::External)?;
        let batch = match self.kind {
            RegistryKind::Vehicles => registry::vehicles(&rows),
            RegistryKind::VehiclesView => registry::vehicles_view(&rows, &self.last_known),
            RegistryKind::Devices => registry::devices(&rows),
        }?;
        one_batch(batch, projection)
    }
}

struct LastKnownTable {
    schema: SchemaRef,
    last_known: Arc<LastKnown>,
    units: Arc<Catalogue>,
    from_rows: OnceLock<LogicalPlan>,
}

impl std::fmt::Debug for LastKnownTable {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("LastKnownTable")
    }
}

#[async_trait]
impl TableProvider for LastKnownTable {
    fn schema(&self) -> SchemaRef {
        Arc::clone(&self.schema)
    }

    fn table_type(&self) -> TableType {
        TableType::View
    }

    fn supports_filters_pushdown(
        &self,
        filters: &[&Expr],
    ) -> Result<Vec<TableProviderFilterPushDown>> {
        Ok(vec![TableProviderFilterPushDown::Inexact; filters.len()])
    }

    async fn scan(
        &self,
        state: &dyn Session,
        projection: Option<&Vec<usize>>,
        filters: &[Expr],
        _limit: Option<usize>,
    ) -> Result<Arc<dyn ExecutionPlan>> {
        if self.last_known.is_complete() {
            let vehicle = filters.iter().find_map(wanted_vehicle);
            return one_batch(self.last_known.rows(vehicle, &self.units)?, projection);
        }
        let plan = self
            .from_rows
            .get()
            .ok_or_else(|| exec_datafusion_err!("last_known_state is not set up"))?;
        let mut plan = LogicalPlanBuilder::from(plan.clone());
        for filter in filters {
            plan = plan.filter(unnormalize_col(filter.clone()))?;
        }
        // In the order and with the types of our schema.
        let columns: Vec<usize> = match projection {
            Some(columns) => columns.clone(),
            None => (0..self.schema.fields().len()).collect(),
        };
        let expressions = columns
            .into_iter()
            .map(|column| datafusion::prelude::ident(self.schema.field(column).name().as_str()));
        let plan = plan.project(expressions.collect::<Vec<_>>())?.build()?;
        state.create_physical_plan(&plan).await
    }
}

/// The vehicle a filter `vehicle_id = '…'` asks for.
fn wanted_vehicle(filter: &Expr) -> Option<&str> {
    let Expr::BinaryExpr(BinaryExpr {
        left,
        op: Operator::Eq,
        right,
    }) = filter
    else {
        return None;
    };
    let (column, literal) = match (&**left, &**right) {
        (Expr::Column(column), Expr::Literal(literal, _))
        | (Expr::Literal(literal, _), Expr::Column(column)) => (column, literal),
        _ => return None,
    };
    if column.name != "vehicle_id" {
        return None;
    }
    match literal {
        ScalarValue::Utf8(Some(id))
        | ScalarValue::Utf8View(Some(id))
        | ScalarValue::LargeUtf8(Some(id)) => Some(id),
        _ => None,
    }
}
