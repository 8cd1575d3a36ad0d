//! From SQL text to statements that may run here.
//!
//! Everyone's SQL is PostgreSQL's dialect, on every door. Questions about the catalogue (`\d` in
//! psql, the table list of Grafana) are written for a real PostgreSQL, so those alone go through
//! datafusion-postgres' rewriting. Never the users' own: the rewriting replaces correlated subqueries
//! in a select list by NULL, which is a wrong answer without a word.

use std::ops::ControlFlow;
use std::sync::LazyLock;

use datafusion::sql::sqlparser::ast::{ObjectName, Statement, visit_relations};
use datafusion::sql::sqlparser::dialect::PostgreSqlDialect;
use datafusion::sql::sqlparser::keywords::Keyword;
use datafusion::sql::sqlparser::parser::{Parser, ParserError};
use datafusion::sql::sqlparser::tokenizer::{Token, Tokenizer};
use datafusion_postgres::datafusion_pg_catalog::sql::PostgresCompatibilityParser;

use crate::query::QueryError;

/// Characters of a statement we look at: an honest query is far below, and parsing is not free.
pub(crate) const MAX_SQL_BYTES: usize = 256 << 10;

/// Operators and clauses of a statement. Each can be a level of its tree, and trees are walked by
/// recursion, here and in the engine: `1+1+1…` ten thousand times ended the process by a stack
/// overflow. A thousand levels fit the stacks we use several times over.
const MAX_OPERATORS: usize = 1_000;

/// What a statement is for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// Reads rows, or explains how it would.
    Read,
    /// Reads a setting.
    Show,
    /// Changes a setting of the session, or marks a transaction that is none.
    Session,
}

/// The statements of `sql`, parsed only.
pub(crate) fn parse(sql: &str) -> Result<Vec<Statement>, QueryError> {
    if sql.len() > MAX_SQL_BYTES {
        return Err(QueryError::Syntax {
            message: format!(
                "the statement has {} bytes, at most {MAX_SQL_BYTES} are read",
                sql.len()
            ),
        });
    }
    let operators = operators(sql)?;
    if operators > MAX_OPERATORS {
        return Err(QueryError::Syntax {
            message: format!(
                "the statement has {operators} operators and clauses, at most {MAX_OPERATORS} are \
                 read; use IN (…) or VALUES instead of long chains"
            ),
        });
    }
    let plain = Parser::parse_sql(&PostgreSqlDialect {}, sql);
    match plain {
        Ok(plain) if plain.iter().any(asks_about_catalogue) => match compatible(sql) {
            Ok(rewritten) if rewritten.len() == plain.len() => Ok(plain
                .into_iter()
                .zip(rewritten)
                .map(|(plain, rewritten)| {
                    if asks_about_catalogue(&plain) {
                        rewritten
                    } else {
                        plain
                    }
                })
                .collect()),
            _ => Ok(plain),
        },
        Ok(plain) => Ok(plain),
        Err(error) => match compatible(sql) {
            Ok(rewritten) if rewritten.iter().all(asks_about_catalogue) => Ok(rewritten),
            _ => Err(QueryError::Syntax {
                message: error.to_string(),
            }),
        },
    }
}

/// Counts what can deepen the tree of a statement, without building it.
fn operators(sql: &str) -> Result<usize, QueryError> {
    let tokens = Tokenizer::new(&PostgreSqlDialect {}, sql)
        .tokenize()
        .map_err(|error| QueryError::Syntax {
            message: error.to_string(),
        })?;
    let deepens = |token: &&Token| match token {
        Token::Word(word) => matches!(
            word.keyword,
            Keyword::AND
                | Keyword::OR
                | Keyword::NOT
                | Keyword::IS
                | Keyword::IN
                | Keyword::LIKE
                | Keyword::ILIKE
                | Keyword::SIMILAR
                | Keyword::BETWEEN
                | Keyword::COLLATE
                | Keyword::AT
                | Keyword::CASE
                | Keyword::SELECT
                | Keyword::UNION
                | Keyword::EXCEPT
                | Keyword::INTERSECT
                | Keyword::JOIN
        ),
        Token::Whitespace(_)
        | Token::Number(..)
        | Token::Char(_)
        | Token::SingleQuotedString(_)
        | Token::EscapedStringLiteral(_)
        | Token::NationalStringLiteral(_)
        | Token::DollarQuotedString(_)
        | Token::HexStringLiteral(_)
        | Token::Placeholder(_)
        | Token::Comma
        | Token::Period
        | Token::LParen
        | Token::RParen
        | Token::SemiColon
        | Token::EOF => false,
        // +, ||, ::, =, [ and whatever else there is or will be.
        _ => true,
    };
    Ok(tokens.iter().filter(deepens).count())
}

/// The only statement of `sql`, if it reads.
pub(crate) fn parse_one(sql: &str) -> Result<Statement, QueryError> {
    let mut statements = parse(sql)?;
    let (Some(statement), true) = (statements.pop(), statements.is_empty()) else {
        return Err(QueryError::Syntax {
            message: "exactly one statement is expected".to_owned(),
        });
    };
    match purpose(&statement)? {
        Purpose::Read | Purpose::Show => Ok(statement),
        Purpose::Session => Err(not_read_only(&statement)),
    }
}

/// What `statement` is for, or that it may not run.
pub(crate) fn purpose(statement: &Statement) -> Result<Purpose, QueryError> {
    match statement {
        Statement::Query(_)
        | Statement::ExplainTable { .. }
        | Statement::ShowTables { .. }
        | Statement::ShowColumns { .. }
        | Statement::ShowFunctions { .. } => Ok(Purpose::Read),
        Statement::Explain { statement, .. } => match purpose(statement)? {
            Purpose::Read => Ok(Purpose::Read),
            Purpose::Show | Purpose::Session => Err(not_read_only(statement)),
        },
        Statement::ShowVariable { .. } => Ok(Purpose::Show),
        Statement::Set(_)
        | Statement::StartTransaction { .. }
        | Statement::Commit { .. }
        | Statement::Rollback { .. } => Ok(Purpose::Session),
        other => Err(not_read_only(other)),
    }
}

pub(crate) fn not_read_only(statement: &Statement) -> QueryError {
    let text = statement.to_string();
    let verb = text
        .split_whitespace()
        .next()
        .unwrap_or("this statement")
        .to_uppercase();
    QueryError::NotReadOnly { statement: verb }
}

/// A statement with the columns that SHOW has, for clients that ask for them before they run it.
pub(crate) fn one_text_column() -> Statement {
    static STATEMENT: LazyLock<Statement> = LazyLock::new(|| {
        Parser::parse_sql(&PostgreSqlDialect {}, "select '' as setting")
            .ok()
            .and_then(|mut statements| statements.pop())
            .expect("constant text, parsed in a test")
    });
    STATEMENT.clone()
}

fn compatible(sql: &str) -> Result<Vec<Statement>, ParserError> {
    static PARSER: LazyLock<PostgresCompatibilityParser> =
        LazyLock::new(PostgresCompatibilityParser::new);
    PARSER.parse(sql)
}

/// True for `select version()` and for whatever names a system relation.
fn asks_about_catalogue(statement: &Statement) -> bool {
    let mut relations = 0;
    let mut system = false;
    let _ = visit_relations(statement, |relation| {
        relations += 1;
        if is_system_relation(relation) {
            system = true;
            return ControlFlow::Break(());
        }
        ControlFlow::<()>::Continue(())
    });
    system || relations == 0
}

fn is_system_relation(relation: &ObjectName) -> bool {
    let parts: Vec<_> = relation
        .0
        .iter()
        .filter_map(|part| part.as_ident())
        .map(|ident| ident.value.to_ascii_lowercase())
        .collect();
    match parts.as_slice() {
        [table] => table.starts_with("pg_"),
        [.., schema, _] => schema == "pg_catalog" || schema == "information_schema",
        [] => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_users_subquery_is_left_alone() {
        let sql = "SELECT v.vehicle_id, (SELECT max(s.value) FROM signals AS s \
                   WHERE s.vehicle_id = v.vehicle_id) FROM vehicles AS v";
        let statements = parse(sql).expect("valid");
        let written: Vec<String> = statements.iter().map(ToString::to_string).collect();
        assert_eq!(written, [sql]);
    }

    #[test]
    fn show_has_a_column() {
        assert_eq!(one_text_column().to_string(), "SELECT '' AS setting");
    }

    #[test]
    fn only_reading_passes() {
        let purposes = [
            ("select 1", Some(Purpose::Read)),
            ("explain analyze select 1", Some(Purpose::Read)),
            ("with a as (select 1) select * from a", Some(Purpose::Read)),
            ("show timezone", Some(Purpose::Show)),
            ("set timezone = 'UTC'", Some(Purpose::Session)),
            ("begin", Some(Purpose::Session)),
            ("insert into signals values (1)", None),
            ("explain insert into signals values (1)", None),
            ("copy signals to '/tmp/x'", None),
            ("create table t (a int)", None),
            ("prepare p as select 1", None),
            ("declare c cursor for select 1", None),
            ("vacuum", None),
        ];
        for (sql, expected) in purposes {
            let statement = parse(sql).expect("parses").pop().expect("one");
            assert_eq!(purpose(&statement).ok(), expected, "{sql}");
        }
    }
}
